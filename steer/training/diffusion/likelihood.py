"""A step of a sampler that draws noise is a Gaussian: its log-density, and the divergence of two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.distributions import Normal

from steer.diffusion.solve import noise_scale, transition
from steer.diffusion.state import Level

Reduce = Literal["mean", "sum"]
"""Over the dimensions of a sample. DDPO, and with it the usual clip range, takes the mean."""


def log_prob(
    after: Tensor, x: Tensor, x0: Tensor, level: Level, to: Level, eta: float = 1.0, reduce: Reduce = "mean"
) -> Tensor:
    """log N(after; m, w^2), (b,), m = alpha' x0 + sqrt(sigma'^2 - w^2) eps, w = eta k as in `solve.noise_scale`.

    Raises ValueError where the step draws no noise: eta = 0, or the last step of most schedules.
    """
    scale = _scale(level, to, eta)
    mean = transition(x, x0, level, to, scale, None)
    return _reduced(Normal(mean.float(), scale).log_prob(after.float()), reduce)


def step_kl(
    x0: Tensor, reference: Tensor, x: Tensor, level: Level, to: Level, eta: float = 1.0, reduce: Reduce = "mean"
) -> Tensor:
    """KL (b,) of the step that x0 leads to from the one that `reference` does: |m - m_ref|^2 / (2 w^2)."""
    scale = _scale(level, to, eta)
    ours, theirs = (transition(x, each, level, to, scale, None).float() for each in (x0, reference))
    return _reduced((ours - theirs).square() / (2 * scale**2), reduce)


def stochastic(schedule: Sequence[Level], eta: float) -> list[int]:
    """The steps of a schedule that draw noise. Raises ValueError where none does."""
    steps = [i for i, (level, to) in enumerate(zip(schedule, schedule[1:])) if noise_scale(level, to, eta) > 0]
    if not steps:
        raise ValueError(f"eta = {eta} over {len(schedule) - 1} steps: no step draws noise; take eta > 0, steps > 1.")
    return steps


def _scale(level: Level, to: Level, eta: float) -> float:
    scale = noise_scale(level, to, eta)
    if scale == 0:
        raise ValueError(
            f"the step from sigma = {level.sigma:.4g} to {to.sigma:.4g} with eta = {eta} draws no noise and has no "
            "density; take eta > 0, and leave out a last step that ends at sigma = 0."
        )
    return scale


def _reduced(values: Tensor, reduce: Reduce) -> Tensor:
    flat = values.flatten(1)
    return flat.mean(1) if reduce == "mean" else flat.sum(1)
