"""Noise schedules for our own loop: lists of levels from noise to clean, `steps` transitions long."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steer.diffusion.state import Level


def vp(steps: int) -> list[Level]:
    """Variance preserving, cosine: alpha = sin(pi u / 2), sigma = cos(pi u / 2) for u = 0 ... 1."""
    return _levels([(math.sin(math.pi * u / 2), math.cos(math.pi * u / 2)) for u in _grid(steps)])


def flow(steps: int, shift: float = 1.0) -> list[Level]:
    """Rectified flow: sigma = shift s / (1 + (shift - 1) s) for s = 1 ... 0, alpha = 1 - sigma."""
    sigmas = [shift * (1 - u) / (1 + (shift - 1) * (1 - u)) for u in _grid(steps)]
    return _levels([(1 - sigma, sigma) for sigma in sigmas])


def karras(steps: int, sigma_max: float = 80.0, sigma_min: float = 0.002, rho: float = 7.0) -> list[Level]:
    """Variance exploding with Karras spacing (arXiv 2206.00364, eq. 5); the last level is 0."""
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    ramp = [u * steps / max(1, steps - 1) for u in _grid(steps)[:-1]]
    sigmas = [(top + u * (bottom - top)) ** rho for u in ramp]
    return _levels([(1.0, sigma) for sigma in [*sigmas, 0.0]])


def _grid(steps: int) -> list[float]:
    if steps < 1:
        raise ValueError(f"a schedule of {steps} steps: expected at least 1.")
    return [i / steps for i in range(steps + 1)]


def _levels(pairs: Sequence[tuple[float, float]]) -> list[Level]:
    last = len(pairs) - 1
    levels = [Level(alpha, sigma, progress=i / last) for i, (alpha, sigma) in enumerate(pairs)]
    levels[-1] = Level(1.0, 0.0, progress=1.0)
    return levels
