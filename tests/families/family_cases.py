"""Cells of the matrix family x scheduler: tiny pipelines of every family that steer drives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import pytest
import tiny
import tiny_families
import torch
from solver_cases import CASES, Case, of, scheduler

PROMPTS = ["a cat", "dog"]
PICTURES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(8))
MASKS = torch.zeros(2, 1, 16, 16)
MASKS[0, :, :, 8:] = MASKS[1, :, 4:] = 1

built = cache(lambda build: tiny_families.made(build, CASES["ddim"].make()))


@dataclass(frozen=True)
class FamilyCase(Case):
    """A pipeline class and a scheduler; a call makes `runs` steps, each of `branches` rows a particle."""

    build: Callable[[Any], Any] = tiny.pipeline
    branches: int = 2
    steps: int = 4
    runs: int = 4

    def pipe(self):
        pipe = built(self.build)
        pipe.scheduler = self.make()
        return pipe

    def run(self, pipe, prompt=None, seed=3, **kwargs) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # SD3 and FLUX draw the noise of their steps from the global stream
            return super().run(pipe, PROMPTS if prompt is None else prompt, seed, **kwargs)

    def attached(self, controllers=(), n=3, exact=False, pipe=None, prompt=None, **kwargs) -> Any:
        return super().attached(controllers, n, exact, pipe, prompt=PROMPTS if prompt is None else prompt, **kwargs)

    def ask(self, **kwargs) -> dict[str, Any]:
        """Arguments of a call, for `Steered` and `denoiser_of`."""
        given = {"num_inference_steps": self.steps, "guidance_scale": 3.0, "generator": tiny.generator()}
        return {**given, **self.call, **kwargs}

    @cached_property
    def plain(self) -> torch.Tensor:
        """(P, ...) What n = 1 gives: the plain pipeline's latents, or where steer adds the noise the attached one's."""
        return self.run(self.pipe()) if self.eta is None else self.attached(n=1)[0]

    @cached_property
    def three(self) -> torch.Tensor:
        """(P, 3, ...) latents of three particles in exact batches."""
        return self.attached(exact=True)[0].unflatten(0, (len(PROMPTS), 3))


FLOW = {"shift": 3.0}
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
DYNAMIC = {"use_dynamic_shifting": True, "time_shift_type": "exponential"}


def flow(name: str, **config) -> Callable[[], Any]:
    made = scheduler(name, **config).keywords
    return lambda: scheduler(name).func(**{key: value for key, value in made.items() if not key.startswith("beta")})


FLOWS = {
    "euler": Case(flow("FlowMatchEulerDiscreteScheduler", **FLOW)),
    "euler-eta": Case(flow("FlowMatchEulerDiscreteScheduler", **FLOW), True, eta=1.0),
    "stochastic": Case(flow("FlowMatchEulerDiscreteScheduler", stochastic_sampling=True, **FLOW), True),
    "heun": Case(flow("FlowMatchHeunDiscreteScheduler", **FLOW)),
    "dpm2m": Case(flow("DPMSolverMultistepScheduler", **FLOW_SIGMAS)),
    "dpm2m-sde": Case(flow("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", **FLOW_SIGMAS), True),
    "unipc": Case(flow("UniPCMultistepScheduler", **FLOW_SIGMAS)),
    "unipc-dynamic": Case(flow("UniPCMultistepScheduler", **FLOW_SIGMAS, **DYNAMIC)),
}


def cells(family: str, build: Any, schedulers: dict[str, Case], names: str, call: dict | None = None, **more):
    """{family-scheduler: case} for some schedulers, named in one string."""
    found = {}
    for name in names.split():
        base = schedulers[name]
        given = {**base.call, **(call or {})}
        found[f"{family}-{name}"] = FamilyCase(base.make, base.noisy, given, base.eta, build=build, **more)
    return found


START = {"image": PICTURES[:1], "strength": 0.8}
FILL = {"image": PICTURES[:1], "mask_image": MASKS[:1], "height": 16, "width": 16}
TRUE_CFG = {"negative_prompt": "bird", "true_cfg_scale": 2.0}
SIZE = tiny_families.SIZE

MATRIX: dict[str, FamilyCase] = {
    **cells("sdxl", tiny_families.sdxl, CASES, "ddim-eta euler-a heun dpm2m-sde unipc pndm"),
    **cells("sd3", tiny_families.sd3, FLOWS, "euler euler-eta stochastic heun dpm2m-sde unipc", SIZE["sd3"]),
    **cells("sd3.5", tiny_families.sd35, FLOWS, "euler-eta", SIZE["sd3"]),
    **cells("flux", tiny_families.flux, FLOWS, "euler euler-eta stochastic unipc-dynamic", SIZE["flux"], branches=1),
    **cells("flux-cfg", tiny_families.flux, FLOWS, "euler euler-eta", {**SIZE["flux"], **TRUE_CFG}),
    **cells("flux-fill", tiny_families.flux_fill, FLOWS, "euler euler-eta", {**SIZE["flux"], **FILL}, branches=1),
    **cells("pixart", tiny_families.pixart, CASES, "euler-a dpm2m-sde unipc", SIZE["pixart"]),
    **cells("sana", tiny_families.sana, FLOWS, "euler-eta dpm2m dpm2m-sde", SIZE["sana"]),
    **cells("lumina2", tiny_families.lumina2, FLOWS, "euler euler-eta stochastic", SIZE["lumina2"]),
    **cells("sdxl-img2img", tiny_families.sdxl_img2img, CASES, "ddim-eta dpm2m", START, runs=3),
    **cells("sd-inpaint", tiny_families.sd_inpaint, CASES, "ddim euler-a", FILL),
    **cells("sd-inpaint-part", tiny_families.sd_inpaint, CASES, "dpm2m", {**FILL, "strength": 0.8}, runs=3),
    **cells("sdxl-inpaint", tiny_families.sdxl_inpaint, CASES, "ddim", {**FILL, "strength": 1.0}),
    **cells("sdxl-inpaint-9", tiny_families.sdxl_inpaint_9, CASES, "unipc euler-a", {**FILL, "strength": 0.8}, runs=3),
}

EVERY = of(MATRIX)
NOISY = of({name: case for name, case in MATRIX.items() if case.noisy})
DETERMINISTIC = of({name: case for name, case in MATRIX.items() if not case.noisy})


def some(*names: str):
    return pytest.mark.parametrize("case", [MATRIX[name] for name in names], ids=names)


ONE_EACH = some(
    "sdxl-euler-a",
    "sd3-euler",
    "flux-euler",
    "flux-cfg-euler",
    "flux-fill-euler",
    "pixart-unipc",
    "sana-dpm2m",
    "lumina2-euler",
    "sdxl-img2img-ddim-eta",
    "sd-inpaint-euler-a",
    "sdxl-inpaint-9-euler-a",
)
