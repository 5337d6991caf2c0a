"""Rules that turn a gradient into a step: how far, and what stays fixed.

A rule is a function (gradient, log f (P n,), state with x0) -> step (P n, ...). Those for the gradient through the
network return an edit of x0; the solver then moves with it. Some papers add their step to x' itself: as x' moves by
c = d x' / d x0 times an edit of x0 (see `pull`), such a step enters here divided by c, and x' is theirs exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.diffusion.solve import noise_scale
from steer.diffusion.state import Level, State

Rule = Callable[[Tensor, Tensor, State], Tensor]

SCHEDULES = {
    "constant": lambda ratio: 1.0,
    "increase": lambda ratio: ratio,
    "decrease": lambda ratio: 1.0 - ratio,
}


def pull(state: State) -> float:
    """c = alpha' - sqrt(sigma'^2 - s^2) alpha / sigma: how far the coming transition x' moves with x0.

    Raises ValueError where the run's step is not `solve.transition`.
    """
    if state.run.eta is None:
        raise ValueError(
            "this method must know how x' depends on x0, and the run's solver is not a first-order transition (or it "
            "clips x0). Use DDIM, DDPM, Euler or Euler ancestral without clipping, `ddim` in `sample`; or a rule that "
            "edits x0 whatever the solver, as lgd and universal_guidance do."
        )
    level, to = state.level, state.to
    kept = math.sqrt(max(0.0, to.sigma**2 - noise_scale(level, to, state.run.eta) ** 2))
    return to.alpha - kept * level.alpha / level.sigma


@dataclass(frozen=True)
class _Strength:
    strength: float

    def __post_init__(self):
        if not math.isfinite(self.strength):
            raise ValueError(f"{self}: expected a finite strength.")


@dataclass(frozen=True)
class Score(_Strength):
    """x0 moves by strength sigma^2 / alpha gradient: the score of x gains strength x gradient, by Tweedie's formula."""

    def __call__(self, gradient: Tensor, value: Tensor, state: State) -> Tensor:
        return self.strength * state.level.sigma**2 / state.level.alpha * gradient


@dataclass(frozen=True)
class Relative(_Strength):
    """x0 moves along the gradient by strength sigma / alpha times the root mean square of the predicted noise.

    The scale of FreeDoM's released code, where strength = 0.02.
    """

    def __call__(self, gradient: Tensor, value: Tensor, state: State) -> Tensor:
        level = state.level
        noise = (state.x - level.alpha * state.x0) / level.sigma
        return self.strength * level.sigma / level.alpha * rms(noise) * unit(gradient)


@dataclass(frozen=True)
class Residual(_Strength):
    """x' moves by strength gradient / ||residual||, for a reward that is minus a squared residual: DPS.

    Raises ValueError where log f > 0.
    """

    def __call__(self, gradient: Tensor, value: Tensor, state: State) -> Tensor:
        if (value > 0).any():
            raise ValueError(
                f"{self} divides by the residual sqrt(-log f), and a reward is {float(value.max()):.3g} > 0; expected "
                "minus a squared distance, such as -|y - A(x0)|^2. For other rewards use freedom or lgd."
            )
        size = (-value).clamp_min(1e-12).sqrt()
        return self.strength / pull(state) * gradient / _rows(size, gradient).to(gradient.dtype)


@dataclass(frozen=True)
class _Scheduled(_Strength):
    schedule: str = "constant"

    def __post_init__(self):
        super().__post_init__()
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r}: expected one of {', '.join(SCHEDULES)}.")


@dataclass(frozen=True)
class Kick(_Scheduled):
    """x' moves by strength w_t alpha' / alpha gradient: TFG's variance guidance; w_t as in `Step`."""

    def __call__(self, gradient: Tensor, value: Tensor, state: State) -> Tensor:
        size = self.strength * weight(self.schedule, state) * state.to.alpha / state.level.alpha
        return size / pull(state) * gradient


@dataclass(frozen=True)
class Step(_Scheduled):
    """strength w_t gradient, with w_t = T s_t / sum s and s_t: 1, (alpha / alpha')^2 (increase) or 1 minus that."""

    def __call__(self, gradient: Tensor, value: Tensor, state: State) -> Tensor:
        return self.strength * weight(self.schedule, state) * gradient


@dataclass(frozen=True)
class Drift(_Strength):
    """x' moves by strength s^2 gradient, s the deviation of its noise: the proposal of TDS and DAS."""

    def __call__(self, gradient: Tensor, value: Tensor, state: State) -> Tensor:
        scale = noise_scale(state.level, state.to, state.run.eta or 0.0)
        return self.strength * scale**2 / pull(state) * gradient


THROUGH = (Score, Relative, Residual, Kick, Drift)
"""Rules for the gradient through the network only: they are sized by alpha, or by how x' follows x0."""


@dataclass(frozen=True)
class Unit(_Strength):
    """strength / alpha' times the gradient scaled to root mean square 1: MPGD's released code."""

    def __call__(self, gradient: Tensor, value: Tensor, state: State) -> Tensor:
        return self.strength / state.to.alpha * unit(gradient)


def weight(schedule: str, state: State) -> float:
    """w_t of TFG: its mean over the run is 1."""

    def at(level: Level, to: Level) -> float:
        return SCHEDULES[schedule]((level.alpha / to.alpha) ** 2)

    levels = state.run.schedule
    total = sum(at(level, to) for level, to in zip(levels[:-1], levels[1:], strict=True))
    return state.steps * at(state.level, state.to) / total if total > 0 else 0.0


def rms(x: Tensor) -> Tensor:
    """Root mean square of each particle, (P n, 1, ...)."""
    return _rows(x.flatten(1).square().mean(1).sqrt(), x)


def unit(x: Tensor) -> Tensor:
    """x scaled to root mean square 1, each particle by itself; a zero stays zero."""
    return x / rms(x).clamp_min(torch.finfo(x.dtype).tiny)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))
