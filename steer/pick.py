"""From log-weights to ancestors: who continues, for each prompt's group of particles.

A pick is a function (logw (P, n) float32, generator) -> Picked(index (P, n), logw (P, n)). `index[p, k]` is the particle
that slot k of group p continues; `logw` are the weights that remain, -inf for a slot that is pruned. A log-weight of
-inf never continues; where all of a group are -inf every slot continues particle 0. Ties go to the lower number.
Both wings of steer use these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor


class Picked(NamedTuple):
    index: Tensor
    logw: Tensor


Pick = Callable[[Tensor, Generator], Picked]


def ess(logw: Tensor) -> Tensor:
    """Effective sample size (P,) of log-weights (P, n): (sum w)^2 / sum w^2, between 1 and n."""
    return torch.exp(2 * torch.logsumexp(logw, -1) - torch.logsumexp(2 * logw, -1))


def greedy(logw: Tensor, generator: Generator) -> Picked:
    """Every slot continues the best particle of its group (best-of-N, CoDe)."""
    best = logw.argmax(-1, keepdim=True)
    return _equal(best.expand_as(logw))


def one(logw: Tensor, generator: Generator) -> Picked:
    """Every slot continues one particle, drawn with probability softmax(logw) (soft best-of-N, SVDD)."""
    chosen = torch.multinomial(_probabilities(logw), 1, generator=generator)
    return _equal(chosen.expand_as(logw))


def multinomial(logw: Tensor, generator: Generator) -> Picked:
    """Every slot draws its own ancestor with probability softmax(logw)."""
    return _equal(torch.multinomial(_probabilities(logw), logw.shape[-1], replacement=True, generator=generator))


def systematic(logw: Tensor, generator: Generator) -> Picked:
    """One uniform number a group and n equally spaced points: the lowest-variance unbiased resampling.

    Particle k gets floor(n p_k) or ceil(n p_k) children. Douc & Cappe 2005, arXiv cs/0507025.
    """
    n = logw.shape[-1]
    start = torch.rand(len(logw), 1, generator=generator, dtype=torch.float64)
    points = (torch.arange(n, dtype=torch.float64) + start) / n
    index = torch.searchsorted(_probabilities(logw).double().cumsum(-1).contiguous(), points, right=True)
    last_possible = (_probabilities(logw) > 0).long().mul(torch.arange(n)).amax(-1, keepdim=True)
    return _equal(torch.minimum(index, last_possible))


def top_k(k: int) -> Pick:
    """The k best share the n slots evenly (beam search with k beams)."""

    def pick(logw: Tensor, generator: Generator) -> Picked:
        best = _best(logw, k)
        return _equal(best[:, torch.arange(logw.shape[-1]) % k])

    return pick


def prune(k: int) -> Pick:
    """The k best go on in the first k slots; the other slots are switched off and cost nothing from then on."""

    def pick(logw: Tensor, generator: Generator) -> Picked:
        n = logw.shape[-1]
        best = _best(logw, k)
        weights = torch.zeros_like(logw)
        weights[:, k:] = -torch.inf
        return Picked(best[:, torch.arange(n) % k], weights)

    return pick


def when_ess_below(fraction: float, pick: Pick = systematic) -> Pick:
    """Resample a group only when its effective sample size is under `fraction` of n; else keep its weights."""
    if not 0 < fraction <= 1:
        raise ValueError(f"when_ess_below({fraction}): expected a fraction of n in (0, 1].")

    def conditional(logw: Tensor, generator: Generator) -> Picked:
        picked = pick(logw, generator)
        low = (ess(logw) < fraction * logw.shape[-1])[:, None] | ~torch.isfinite(logw).any(-1, keepdim=True)
        stay = torch.arange(logw.shape[-1]).expand_as(logw)
        kept = logw - torch.logsumexp(logw, -1, keepdim=True)
        return Picked(torch.where(low, picked.index, stay), torch.where(low, picked.logw, kept))

    return conditional


def _best(logw: Tensor, k: int) -> Tensor:
    if not 1 <= k <= logw.shape[-1]:
        raise ValueError(f"{k} of {logw.shape[-1]} particles cannot be kept: expected 1 <= k <= n.")
    return logw.sort(-1, descending=True, stable=True).indices[:, :k]


def _probabilities(logw: Tensor) -> Tensor:
    first = torch.zeros_like(logw)
    first[:, 0] = 1
    return torch.where(torch.isfinite(logw).any(-1, keepdim=True), torch.softmax(logw, -1), first)


def _equal(index: Tensor) -> Picked:
    return Picked(index, torch.zeros(index.shape))
