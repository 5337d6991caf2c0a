"""Solvers: one transition from a level to a cleaner one, with whatever history they need held in the open.

A solver is a function (state, next level, denoise) -> (x, history): `state.x0` is fresh, `denoise(x, level)` may be
called for a second evaluation, and all its memory is in `history`, so that a gather takes it along. `solver.noisy` says
whether it draws noise: under a solver that does not, equal particles stay equal and a search has nothing to choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from steer_kernels import serving
from torch import Tensor

from steer.diffusion.state import Level, State

Denoise = Callable[[Tensor, Level], Tensor]


class Solver(Protocol):
    @property
    def noisy(self) -> bool: ...

    def __call__(self, state: State, to: Level, denoise: Denoise) -> tuple[Tensor, dict[str, Tensor]]: ...


def noise_scale(level: Level, to: Level, eta: float = 1.0) -> float:
    """eta k with k = sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2): the deviation of x' given x and x0.

    eta = 1 is the ancestral step in every scaling (DDPM, Euler ancestral), eta = 0 deterministic.
    """
    ratio = level.alpha * to.sigma / (to.alpha * level.sigma)
    return eta * to.sigma * math.sqrt(max(0.0, 1 - ratio**2))


def transition(x: Tensor, x0: Tensor, level: Level, to: Level, scale: float, noise: Tensor | None) -> Tensor:
    """x' = alpha' x0 + sqrt(sigma'^2 - scale^2) eps + scale noise, with eps = (x - alpha x0) / sigma.

    DDIM with an eta dial (arXiv 2010.02502, eq. 12), written for any (alpha, sigma). Without noise: the mean of x'.
    On a GPU by one kernel, in float32 until x' is rounded, where all are of one shape and of a dtype that it takes.
    """
    kept = math.sqrt(max(0.0, to.sigma**2 - scale**2))
    alike = all(given.shape == x.shape and given.dtype == x.dtype for given in (x0, noise) if given is not None)
    if alike and serving.kernel("transition", x, x0) is not None:
        from steer_kernels.transition import OP  # imports Triton

        a, drawn = kept / level.sigma, 0.0 if noise is None else scale
        return OP(x, x0, None, noise, None, None, 1.0, a, to.alpha - a * level.alpha, drawn, 0, 0)
    eps = (x - level.alpha * x0) / level.sigma
    moved = to.alpha * x0 + kept * eps
    return moved if noise is None else moved + scale * noise


def renoised(x: Tensor, level: Level, up: Level, noise: Tensor) -> Tensor:
    """From a level back up to a noisier one: a x + sqrt(sigma_up^2 - (a sigma)^2) noise with a = alpha_up / alpha."""
    a = up.alpha / level.alpha
    return a * x + math.sqrt(max(0.0, up.sigma**2 - (a * level.sigma) ** 2)) * noise


@dataclass(frozen=True)
class ddim:
    """DDIM with noise dial 0 <= eta <= 1; eta = 1 is DDPM / Euler ancestral, eta = 0 is Euler. arXiv 2010.02502."""

    eta: float = 1.0

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta = {self.eta}: expected 0 (deterministic) <= eta <= 1 (ancestral).")

    @property
    def noisy(self) -> bool:
        return self.eta > 0

    def __call__(self, state: State, to: Level, denoise: Denoise) -> tuple[Tensor, dict[str, Tensor]]:
        scale = noise_scale(state.level, to, self.eta)
        noise = draw_like(state) if scale > 0 else None
        return transition(state.x, state.x0, state.level, to, scale, noise), {}


@dataclass(frozen=True)
class heun:
    """Heun's second-order step on y = x / alpha over rho = sigma / alpha; Euler at the ends. arXiv 2206.00364."""

    noisy: bool = False

    def __call__(self, state: State, to: Level, denoise: Denoise) -> tuple[Tensor, dict[str, Tensor]]:
        x, x0, level = state.x, state.x0, state.level
        euler = transition(x, x0, level, to, 0.0, None)
        if to.sigma == 0 or level.alpha == 0:
            return euler, {}
        rho, rho_to = level.sigma / level.alpha, to.sigma / to.alpha
        slope = (x / level.alpha - x0) / rho
        slope_to = (euler / to.alpha - denoise(euler, to)) / rho_to
        return to.alpha * (x / level.alpha + (rho_to - rho) * (slope + slope_to) / 2), {}


@dataclass(frozen=True)
class dpmpp_2m:
    """DPM-Solver++(2M): two-step multistep in log(alpha / sigma), first order at the ends. arXiv 2211.01095."""

    noisy: bool = False

    def __call__(self, state: State, to: Level, denoise: Denoise) -> tuple[Tensor, dict[str, Tensor]]:
        x0, level = state.x0, state.level
        mixed = x0
        if "x0" in state.history and to.sigma > 0:
            step = _log_snr(to) - _log_snr(level)
            weight = step / (2 * float(state.history["width"].flatten()[0]))
            mixed = x0 + weight * (x0 - state.history["x0"])
        shrink = to.sigma / level.sigma
        x = shrink * state.x + (to.alpha - shrink * level.alpha) * mixed
        step = math.inf if to.sigma == 0 else _log_snr(to) - _log_snr(level)
        width = torch.full((len(x0),), step)  # stays on the CPU
        return x, {"x0": x0, "width": width}


def draw_like(state: State) -> Tensor:
    """Fresh noise for every particle of a state; pruned slots share their speaker's."""
    shape, x = (len(state.x) // state.n, *state.x.shape[1:]), state.x
    generator = state.run.noise.generator
    device = x.device if generator is None else generator.device  # None: torch's own, as pipelines take it
    return state.run.noise.draw(
        lambda: torch.randn(shape, generator=generator, dtype=x.dtype, device=device).to(x.device),
        state.alias,
    )


def _log_snr(level: Level) -> float:
    return -math.inf if level.alpha == 0 else math.log(level.alpha / level.sigma)
