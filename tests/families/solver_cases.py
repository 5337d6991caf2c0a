"""Every scheduler that steer drives, in the settings of Stable Diffusion, and small controllers to test with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import diffusers
import pytest
import tiny
import torch

from steer.diffusion.control import Controller
from steer.diffusion.noise import ParticleNoise
from steer.diffusion.pipelines import attach

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Case:
    """A scheduler, what its pipeline is called with, and whether a run draws noise; `eta` goes to steer."""

    make: Callable[[], Any]
    noisy: bool = False
    call: dict[str, Any] = field(default_factory=dict)
    eta: float | None = None
    steps: int = 6

    def pipe(self):
        return tiny.pipeline(self.make())

    def run(self, pipe, prompt="a cat", seed=3, **kwargs):
        given = {"output_type": "latent", "generator": tiny.generator(seed), **self.call, **kwargs}
        return pipe(prompt, num_inference_steps=self.steps, **{"guidance_scale": 3.0, **given}).images

    def attached(self, controllers=(), n=4, exact=False, pipe=None, **kwargs):
        """(latents, session) of a run with n particles."""
        pipe = self.pipe() if pipe is None else pipe
        with attach(pipe, controllers, n, self.eta, exact) as session:
            return self.run(pipe, num_images_per_prompt=n, **kwargs), session


def scheduler(name: str, **config) -> Callable[[], Any]:
    return partial(getattr(diffusers, name), **{**BETAS, **config})


PLAIN = {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}
DPM = "DPMSolverMultistepScheduler"
CASES = {
    "ddim": Case(scheduler("DDIMScheduler", **PLAIN)),
    "ddim-eta": Case(scheduler("DDIMScheduler", **PLAIN), True, {"eta": 1.0}),
    "ddpm": Case(scheduler("DDPMScheduler", clip_sample=False, steps_offset=1), True),
    "euler": Case(scheduler("EulerDiscreteScheduler", steps_offset=1)),
    "euler-eta": Case(scheduler("EulerDiscreteScheduler", steps_offset=1), True, eta=1.0),
    "euler-a": Case(scheduler("EulerAncestralDiscreteScheduler", steps_offset=1), True),
    "heun": Case(scheduler("HeunDiscreteScheduler", steps_offset=1)),
    "dpm2m": Case(scheduler(DPM)),
    "dpm3m": Case(scheduler(DPM, solver_order=3)),
    "dpm2m-sde": Case(scheduler(DPM, algorithm_type="sde-dpmsolver++"), True),
    "dpm-single": Case(scheduler("DPMSolverSinglestepScheduler")),
    "unipc": Case(scheduler("UniPCMultistepScheduler")),
    "deis": Case(scheduler("DEISMultistepScheduler")),
    "pndm": Case(scheduler("PNDMScheduler", skip_prk_steps=True, steps_offset=1)),
    "pndm-prk": Case(scheduler("PNDMScheduler", skip_prk_steps=False, steps_offset=1), steps=7),
    "lcm": Case(scheduler("LCMScheduler"), True),
    "lms": Case(scheduler("LMSDiscreteScheduler", steps_offset=1)),
    "tcd": Case(scheduler("TCDScheduler"), True, {"eta": 0.5}),
}


def of(cases: dict[str, Case]):
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


EVERY = of(CASES)
NOISY = of({name: case for name, case in CASES.items() if case.noisy})
DETERMINISTIC = of({name: case for name, case in CASES.items() if not case.noisy})


def brightness(pictures, prompts):
    return pictures.mean((1, 2, 3))


@dataclass(frozen=True)
class Gather(Controller):
    """Gathers every prompt's particles by one index at one step."""

    index: tuple[int, ...]
    step: int = 3

    def look(self, state):
        if state.i != self.step:
            return state
        return state.gather(torch.tensor(self.index).expand(len(state.run.prompts), -1))


@dataclass(frozen=True)
class PermuteNoise(Controller):
    """From one step on, every slot draws the noise that belongs to another."""

    index: tuple[int, ...]
    step: int = 3

    def look(self, state):
        if state.i == self.step:
            noise, draw = state.run.noise, state.run.noise.draw
            noise.draw = lambda plain, alias=None: draw(plain, alias)[list(self.index)]
        return state


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> bool:
    """Equal to rounding: largest difference within `tolerance` of the largest value."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def noise_of(case, n, monkeypatch, **kwargs):
    """Every noise tensor that a run of the case with n particles draws."""
    drawn, draw = [], ParticleNoise.draw

    def noted(self, plain, alias=None):
        drawn.append(draw(self, plain, alias))
        return drawn[-1]

    with monkeypatch.context() as patch:
        patch.setattr(ParticleNoise, "draw", noted)
        case.attached(n=n, **kwargs)
    return drawn
