"""How unlikely a noise is under N(0, I): penalties (b, ...) -> (b,) that keep an optimised noise typical."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_2 = math.log(2.0)


@dataclass(frozen=True)
class NormPrior:
    """Minus the log-density of the norm of z ~ N(0, I) in d dimensions, |z|^2 / 2 - (d - 1) log |z|; arXiv 2406.04312.

    Smallest at |z| = sqrt(d - 1). It sees the norm alone: any direction goes.
    """

    def __call__(self, z: Tensor) -> Tensor:
        norm = z.flatten(1).norm(dim=1)
        return norm.square() / 2 - (z[0].numel() - 1) * norm.log()


@dataclass(frozen=True)
class Typical:
    """The probability regulariser of DNO (arXiv 2405.18881): log-bounds on how often N(0, I) looks like z.

    z is cut into m pieces of length k = `block`; their mean and second moment obey
        P(|mean| > a) <= 2 exp(-m a^2 / (2 k))
        P(|cov - I|_2 > b) <= 2 exp(-m (sqrt(1 + b) - 1 - sqrt(k / m))_+^2 / 2)
    and the penalty is minus the sum of both logs, no less than log 2 each, for z as it lies and on average over
    `shuffles` fixed permutations of it. Raises ValueError where z has fewer than `block` numbers.
    """

    block: int = 4
    shuffles: int = 100
    seed: int = 0

    def __post_init__(self):
        if self.block < 1 or self.shuffles < 1:
            raise ValueError(f"{self}: expected block >= 1 and shuffles >= 1.")

    def __call__(self, z: Tensor) -> Tensor:
        flat = z.flatten(1)
        if flat.shape[1] < self.block:
            raise ValueError(f"{self}: a noise of {flat.shape[1]} numbers; expected a block of {self.block} or more.")
        generator = torch.Generator().manual_seed(self.seed)
        orders = torch.stack([torch.randperm(flat.shape[1], generator=generator) for _ in range(self.shuffles)])
        return self._penalty(flat) + self._penalty(flat[:, orders.to(z.device)]).mean(1)

    def _penalty(self, flat: Tensor) -> Tensor:
        """(..., d) -> (...)."""
        k, m = self.block, flat.shape[-1] // self.block
        pieces = flat[..., : m * k].unflatten(-1, (m, k))
        mean = pieces.mean(-2).square().sum(-1)
        off = pieces.transpose(-1, -2) @ pieces / m - torch.eye(k, dtype=flat.dtype, device=flat.device)
        spread = (1 + torch.linalg.matrix_norm(off, ord=2)).sqrt() - 1 - math.sqrt(k / m)
        return (m * mean / (2 * k)).clamp_min(LOG_2) + (m * spread.clamp_min(0).square() / 2).clamp_min(LOG_2)


@dataclass(frozen=True)
class Free:
    """The noise itself is optimised, under a penalty on it."""

    prior: NormPrior | Typical | None = None

    def begin(self, z: Tensor) -> tuple[Tensor, ...]:
        return (z.clone(),)

    def noise(self, parts: tuple[Tensor, ...], z: Tensor) -> Tensor:
        return parts[0]

    def penalty(self, parts: tuple[Tensor, ...]) -> Tensor:
        """(b,)"""
        return parts[0].new_zeros(len(parts[0])) if self.prior is None else self.prior(parts[0])


@dataclass(frozen=True)
class Shifted:
    """Mean and variance of the noise are optimised, mu + sqrt(v) z (InitNO, arXiv 2404.04650).

    Penalty: the KL divergence of N(mu, v) from N(0, 1), (v + mu^2 - 1 - log v) / 2, a mean over the numbers of z.
    """

    def begin(self, z: Tensor) -> tuple[Tensor, ...]:
        return torch.zeros_like(z), torch.zeros_like(z)

    def noise(self, parts: tuple[Tensor, ...], z: Tensor) -> Tensor:
        mean, log_variance = parts
        return mean + (log_variance / 2).exp() * z

    def penalty(self, parts: tuple[Tensor, ...]) -> Tensor:
        """(b,)"""
        mean, log_variance = (part.flatten(1) for part in parts)
        return (log_variance.exp() + mean.square() - 1 - log_variance).mean(1) / 2
