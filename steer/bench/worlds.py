"""What a suite runs on: pipelines by name or folder, and toys."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor

from steer import measure, zoo
from steer.bench.cell import Cell
from steer.bench.problem import Found, Problem
from steer.bench.prompts import prompts_of
from steer.bench.toys import TOYS, Toy
from steer.compare import score
from steer.diffusion.ledger import Ledger
from steer.diffusion.pipelines import denoiser_of
from steer.rewards import Judge, Reward, named
from steer.rewards.border import unknown
from steer.zoo.data import compose, glyphs, split

REWARDS = ("compressibility", "clip", "style:noto", "colour:red", "sharpness")
REAL = 256
BASE_SEED = 2**31


@dataclass(frozen=True)
class Pipeline:
    """A diffusers pipeline through its network and conditioning, in steer's own loop: DDIM on the pipeline's schedule.

    Divergence is KID x 1000 to the pictures that it makes of the same prompts by itself, `kid` that to real pictures.
    """

    pipe: Any
    options: dict[str, Any]
    base: dict[Any, Tensor] = field(default_factory=dict)
    rewards = REWARDS
    chunk = 128
    guided = True

    def prompts(self, cell: Cell) -> list[str]:
        return prompts_of(cell.prompt_set, cell.prompts)

    def images(self, cell: Cell) -> int:
        return cell.images

    def reward(self, name: str) -> Reward:
        return named(name)

    def problem(self, prompts: Sequence[str], cell: Cell, generator: Generator) -> Problem:
        """Raises ValueError as `denoiser_of` does."""
        options = {"num_inference_steps": cell.steps, "guidance_scale": cell.guidance, **self.options}
        d = denoiser_of(self.pipe, list(prompts), **options)
        return Problem(d, d.shape, d.schedule, d.prompts, generator, d.cond, d.decode)

    def judged(self, x: Tensor, cell: Cell) -> dict[str, Any]:
        """Of pictures (prompts, images, 3, h, w): judge and diversity a prompt, divergence and kid a number."""
        every = x.flatten(0, 1)
        return {
            "judge": score(Judge(), x, self.prompts(cell)).mean(1).tolist(),
            "diversity": measure.diversity(x).tolist(),
            "divergence": measure.kid(every, self.plain(cell).flatten(0, 1), paired=True),
            "kid": measure.kid(every, _real()),
        }

    def plain(self, cell: Cell) -> Tensor:
        """Unsteered pictures of the same prompts from noise that no cell has, made once."""
        key = (cell.guidance, cell.steps, cell.prompt_set, cell.prompts, cell.images)
        if key not in self.base:
            self.base[key], _ = pictures(self, replace(cell, seed=BASE_SEED), 1, lambda problem: problem.solve([], 1))
        return self.base[key]


@functools.cache
def _real() -> Tensor:
    seen = compose(glyphs()[0][split()])
    return seen[torch.linspace(0, len(seen) - 1, REAL).round().long()]


World = Pipeline | Toy


@functools.lru_cache(maxsize=1)
def world_of(model: str, dtype: str, device: str) -> World:
    """A toy, an embedded pipeline, or one in a folder or on the hub; the last one is kept.

    Raises ValueError for a name that is none of these and for a dtype or a device that is not there.
    """
    if model in TOYS:
        return TOYS[model]
    if dtype not in ("float32", "bfloat16", "float16"):
        raise unknown("dtype", dtype, ("float32", "bfloat16", "float16"))
    if "/" not in model and model not in (*zoo.PIPELINES, "emoji"):
        raise unknown("model", model, (*zoo.PIPELINES, *TOYS), "Or give a folder (./name) or a hub id (owner/name).")
    try:
        pipe = zoo.load(model).to(device=device, dtype=getattr(torch, dtype))
    except RuntimeError as error:
        raise ValueError(f"{model} cannot be moved to device {device!r}: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return Pipeline(pipe, zoo.CALLS.get(model, {}))


@torch.no_grad()
def pictures(world: World, cell: Cell, n: int, solve: Callable[[Problem], Found]) -> tuple[Tensor, Ledger]:
    """What `solve` makes of all prompts, (prompts, images, ...), as rewards see it, and the cost of all.

    The network sees at most `world.chunk` rows at a time, or one picture's.
    """
    prompts = [prompt for prompt in world.prompts(cell) for _ in range(world.images(cell))]
    width = max(1, world.chunk // (n * branches(world, cell.guidance)))
    made, total = [], Ledger()
    for k in range(0, len(prompts), width):
        generator = torch.Generator().manual_seed(1_000_003 * cell.seed + k)
        problem = world.problem(prompts[k : k + width], cell, generator)
        found = solve(problem)
        made.append((found.x if problem.decode is None else problem.decode(found.x)).float().cpu())
        total = Ledger(*(a + b for a, b in zip(asdict(total).values(), asdict(found.ledger).values(), strict=True)))
    return torch.cat(made).unflatten(0, (-1, world.images(cell))), total


def branches(world: World, guidance: float) -> int:
    """Rows of one particle at one step: two under classifier-free guidance."""
    return 2 if world.guided and guidance > 1 else 1
