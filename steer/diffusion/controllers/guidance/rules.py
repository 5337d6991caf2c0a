"""Rules of guidance that are plain arithmetic on the branches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor
from torch.nn.functional import interpolate

from steer.diffusion.controllers.guidance.branches import ASKED, CONCEPT, FREE, WEAK
from steer.diffusion.controllers.guidance.core import Rule
from steer.diffusion.state import Level, State


class Linear(Rule):
    """sum of weight x branch, the weights adding up to one: the same in every space.

    A branch of weight 0 is not evaluated, so that a rule at strength 0, or outside its range, costs nothing.
    """

    def weights(self, level: Level) -> dict[int, float]:
        raise NotImplementedError

    def needs(self, level: Level) -> tuple[int, ...]:
        return tuple(branch for branch, weight in self.weights(level).items() if weight != 0)

    def __call__(self, level: Level, *branches: Tensor) -> Tensor:
        weights = [weight for weight in self.weights(level).values() if weight != 0]
        first, *others = (weight * branch for weight, branch in zip(weights, branches))
        return sum(others, start=first)


@dataclass(frozen=True)
class Cfg(Linear):
    """u + w (c - u)."""

    weight: float

    def weights(self, level: Level) -> dict[int, float]:
        return {FREE: 1 - self.weight, ASKED: self.weight}


@dataclass(frozen=True)
class CfgPlusPlus(Linear):
    """The CFG weight, level by level, with which a first-order step is the step of CFG++.

    CFG++ moves by x' = alpha' (u + l (c - u)) + k eps_u + s z, where u and c are x0 of the branches, eps_u is
    (x - alpha u) / sigma and k = sqrt(sigma'^2 - s^2). The step of `solve.transition` from x0 = u + w (c - u) differs
    from it by (alpha' l - w (alpha' - k alpha / sigma)) (c - u), 0 for w = l / (1 - k alpha / (alpha' sigma)).
    """

    strength: float
    eta: float
    schedule: tuple[Level, ...] = field(repr=False)

    def weights(self, level: Level) -> dict[int, float]:
        to = next((b for a, b in pairwise(self.schedule) if (a.alpha, a.sigma) == (level.alpha, level.sigma)), None)
        if to is None:
            raise ValueError(
                f"CFG++ has a schedule of {len(self.schedule) - 1} steps, none of them at alpha = {level.alpha:.4g}, "
                f"sigma = {level.sigma:.4g}; pass the run's: denoiser_of(pipe, prompt, num_inference_steps=n).schedule."
            )
        ratio = level.alpha * to.sigma / (to.alpha * level.sigma)  # k alpha / (alpha' sigma) = ratio at eta = 0
        weight = self.strength / (1 - ratio * math.sqrt(1 - self.eta**2 * (1 - ratio**2)))
        return {FREE: 1 - weight, ASKED: weight}

    def check(self, state: State) -> None:
        if state.run.eta != self.eta:
            found = "is no first-order transition" if state.run.eta is None else f"has eta = {state.run.eta}"
            raise ValueError(
                f"CFG++ was made for steps with eta = {self.eta}, but the solver of this run {found}; use DDIM, Euler "
                "or flow Euler, and give cfg_pp their eta."
            )


@dataclass(frozen=True)
class Against(Linear):
    """u + w (c - u) + s (c - weak): away from what a worse network makes of it; s acts in a part of the run only."""

    weight: float
    scale: float
    start: float = 0.0
    stop: float = 1.0

    def weights(self, level: Level) -> dict[int, float]:
        scale = self.scale if self.start <= level.progress < self.stop else 0.0
        return {FREE: 1 - self.weight, ASKED: self.weight + scale, WEAK: -scale}


@dataclass(frozen=True)
class LateNegative(Linear):
    """u + w (c - u), and from `start` on - e (concept - u) as well."""

    weight: float
    erase: float
    start: float

    def weights(self, level: Level) -> dict[int, float]:
        erase = self.erase if level.progress >= self.start else 0.0
        return {FREE: 1 - self.weight + erase, ASKED: self.weight, CONCEPT: -erase}


@dataclass(frozen=True)
class LateReverse(Linear):
    """u + w (c - u), and from `start` on u - e (c - u) in its place."""

    weight: float
    erase: float
    start: float

    def weights(self, level: Level) -> dict[int, float]:
        weight = self.weight if level.progress < self.start else -self.erase
        return {FREE: 1 - weight, ASKED: weight}


@dataclass(frozen=True)
class Frequencies(Rule):
    """u + w_low low(c - u) + w_high (c - u - low(c - u)), low the upper level of a Laplacian pyramid of two."""

    low: float
    high: float

    def __call__(self, level: Level, *branches: Tensor) -> Tensor:
        free, asked = branches
        if free.ndim != 4 or min(free.shape[-2:]) < 2:
            raise ValueError(f"{self!r}: expected pictures or latents (b, c, h, w), got {tuple(free.shape)}.")
        apart = asked - free
        half = interpolate(apart, scale_factor=0.5, mode="bilinear", antialias=True)
        coarse = interpolate(half, size=apart.shape[-2:], mode="bilinear")
        return free + self.low * coarse + self.high * (apart - coarse)
