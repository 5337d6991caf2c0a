"""The border between what networks predict and x0, and toy denoisers whose x0 is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.state import Level

KINDS = ("epsilon", "v_prediction", "flow_prediction", "sample")


def to_x0(prediction: Tensor, x: Tensor, level: Level, kind: str) -> Tensor:
    """The clean estimate x0 (b, ...) from a network's prediction at x = alpha x0 + sigma eps.

    epsilon          x0 = (x - sigma eps) / alpha
    v_prediction     x0 = (alpha x - sigma v) / (alpha^2 + sigma^2),  v = alpha eps - sigma x0
    flow_prediction  x0 = (x - sigma v) / (alpha + sigma),            v = eps - x0
    sample           x0 itself

    Raises ValueError for an unknown kind, and for epsilon at alpha = 0, where x holds no signal.
    """
    alpha, sigma = level.alpha, level.sigma
    if kind == "sample":
        return prediction
    if kind == "v_prediction":
        return (alpha * x - sigma * prediction) / (alpha**2 + sigma**2)
    if kind == "flow_prediction":
        return (x - sigma * prediction) / (alpha + sigma)
    if kind != "epsilon":
        raise ValueError(f"prediction type {kind!r}: expected one of {KINDS}.")
    if alpha == 0:
        raise ValueError(
            "epsilon prediction at alpha = 0 determines no x0; use a v-prediction model at zero terminal SNR."
        )
    return (x - sigma * prediction) / alpha


def from_x0(x0: Tensor, x: Tensor, level: Level, kind: str) -> Tensor:
    """The prediction of the given kind that means this x0: the inverse of `to_x0`, for sigma > 0."""
    alpha, sigma = level.alpha, level.sigma
    if kind == "sample":
        return x0
    if kind == "v_prediction":
        return (alpha * x - (alpha**2 + sigma**2) * x0) / sigma
    if kind == "flow_prediction":
        return (x - (alpha + sigma) * x0) / sigma
    if kind != "epsilon":
        raise ValueError(f"prediction type {kind!r}: expected one of {KINDS}.")
    return (x - alpha * x0) / sigma


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of k isotropic Gaussians in d dimensions, which is its own exact denoiser and score.

    means (k, d), stds (k,), weights (k,) summing to one. Calling it gives E[x0 | x] for x = alpha x0 + sigma eps:
    each component contributes m + alpha s^2 / (alpha^2 s^2 + sigma^2) (x - alpha m), weighted by its responsibility.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __call__(self, x: Tensor, level: Level, cond: Any = None) -> Tensor:
        alpha, sigma = level.alpha, level.sigma
        variance = (alpha * self.stds) ** 2 + sigma**2
        apart = x[:, None, :] - alpha * self.means
        responsibility = torch.softmax(self._log_joint(apart, variance), dim=-1)
        posterior = self.means + (alpha * self.stds**2 / variance)[:, None] * apart
        return (responsibility[..., None] * posterior).sum(1)

    def log_prob(self, x: Tensor, level: Level = Level(1.0, 0.0)) -> Tensor:
        """Log-density (b,) of the noised mixture at x (b, d)."""
        variance = (level.alpha * self.stds) ** 2 + level.sigma**2
        return torch.logsumexp(self._log_joint(x[:, None, :] - level.alpha * self.means, variance), dim=-1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, d) exact samples."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        unit = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[which] + self.stds[which, None] * unit

    def _log_joint(self, apart: Tensor, variance: Tensor) -> Tensor:
        d = apart.shape[-1]
        log_normal = -apart.square().sum(-1) / (2 * variance) - d / 2 * torch.log(2 * torch.pi * variance)
        return log_normal + self.weights.log()
