"""The way of a picture from noise to clean, kept: what references, sources and inversions are to a controller."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from steer.diffusion.control import Denoiser
from steer.diffusion.state import Level


@dataclass(frozen=True)
class Trajectory:
    """r pictures at every level of a run, with the conditioning that they were made or inverted with.

    x        (steps + 1, r, ...)  from noise to clean
    levels   of each, steps + 1
    cond     {argument of the network: (r, branches, ...)}
    prompts  as they were given
    rows     of the network that it took

    A controller evaluates it beside its particles, level by level, so that no features need be stored.
    """

    x: Tensor = field(repr=False)
    levels: tuple[Level, ...] = field(repr=False)
    cond: dict[str, Tensor] = field(repr=False)
    prompts: tuple[str, ...]
    rows: int = 0

    @property
    def noise(self) -> Tensor:
        """(r, ...) the particles at the noisy end."""
        return self.x[0]

    @property
    def latents(self) -> Tensor:
        """(r, ...) the clean pictures."""
        return self.x[-1]

    def at(self, level: Level) -> Tensor:
        """(r, ...) at this noise level. Raises ValueError for a level that it does not pass through."""
        for x, own in zip(self.x, self.levels, strict=True):
            if math.isclose(own.sigma * level.alpha, level.sigma * own.alpha, rel_tol=1e-4):
                return x
        raise ValueError(
            f"the run comes by sigma / alpha = {level.sigma / max(level.alpha, 1e-12):.4g}, where the trajectory of "
            f"{len(self.levels) - 1} steps has no picture; record or invert it with the scheduler and the "
            "num_inference_steps of the run."
        )


def upwards(
    denoiser: Denoiser, x: Tensor, schedule: Sequence[Level], cond: Any = None, repeats: int = 0, noise: bool = False
) -> Iterator[Tensor]:
    """Clean particles x (b, ...) and then those at every noisier level, from which the deterministic run leads to x.

    With v = eps - k x0 the step from x' back to x is x' = ((alpha' + k sigma') x + (alpha sigma' - sigma alpha') v) /
    (alpha + k sigma) for every k. repeats = 0 predicts v at x, where x is at the last level as if it were at the first
    noisier one; every repeat predicts it at the x' found so far, whose fixed point is exact.

    noise  k = 0, for a network that predicts noise (so no level has alpha = 0); else k = 1, for one that predicts a
           velocity: in what a network predicts the iteration contracts
    """
    k = 0.0 if noise else 1.0

    def predicted(x: Tensor, level: Level) -> Tensor:
        x0 = denoiser(x, level, cond)
        return (x - level.alpha * x0) / level.sigma - k * x0

    yield x
    for level, to in zip(schedule[:0:-1], schedule[-2::-1], strict=True):
        turn, shrink = level.alpha * to.sigma - level.sigma * to.alpha, level.alpha + k * level.sigma
        v = predicted(x, to if level is schedule[-1] else level)  # the network does not know the last level
        for again in range(repeats + 1):
            raised = ((to.alpha + k * to.sigma) * x + turn * v) / shrink
            v = predicted(raised, to) if again < repeats else v
        x = raised
        yield x
