"""From log-weights to ancestors: who continues, for each prompt's group of particles.

A pick is a function (logw (P, n) float32, generator) -> Picked(index (P, n), logw (P, n)). `index[p, k]` is the
particle that slot k of group p continues; `logw` are the weights that remain, -inf for a slot that is pruned. A
log-weight of -inf never continues; where all of a group are -inf every slot continues particle 0. Ties go to the lower
number. Everything stays on the device of the weights, where the generator must be too. Both wings of steer use these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from typing import NamedTuple

import torch
from torch import Generator, Tensor


class Picked(NamedTuple):
    index: Tensor
    logw: Tensor


Pick = Callable[[Tensor, Generator], Picked]


class rule:
    """Makes a pick without settings print as its name: the repr of a controller is its configuration."""

    def __init__(self, pick: Pick):
        update_wrapper(self, pick)

    def __call__(self, logw: Tensor, generator: Generator) -> Picked:
        return self.__wrapped__(logw, generator)

    def __repr__(self) -> str:
        return self.__name__


def ess(logw: Tensor) -> Tensor:
    """Effective sample size (P,) of log-weights (P, n): (sum w)^2 / sum w^2, between 1 and n; 0 where all w are 0."""
    return torch.exp(2 * torch.logsumexp(logw, -1) - torch.logsumexp(2 * logw, -1)).nan_to_num(0)


@rule
def greedy(logw: Tensor, generator: Generator) -> Picked:
    """Every slot continues the best particle of its group (best-of-N, CoDe)."""
    return _equal(logw.argmax(-1, keepdim=True).expand_as(logw))


@rule
def one(logw: Tensor, generator: Generator) -> Picked:
    """Every slot continues one particle, drawn with probability softmax(logw) (soft best-of-N, SVDD)."""
    return _equal(torch.multinomial(_probabilities(logw), 1, generator=generator).expand_as(logw))


@rule
def multinomial(logw: Tensor, generator: Generator) -> Picked:
    """Every slot draws its own ancestor with probability softmax(logw)."""
    return _equal(torch.multinomial(_probabilities(logw), logw.shape[-1], replacement=True, generator=generator))


@rule
def systematic(logw: Tensor, generator: Generator) -> Picked:
    """One uniform number a group and n equally spaced points: the lowest-variance unbiased resampling.

    Particle k gets floor(n p_k) or ceil(n p_k) children. Douc & Cappe 2005, arXiv cs/0507025.
    """
    p = _probabilities(logw.double())
    start = torch.rand(len(p), 1, generator=generator, dtype=p.dtype, device=p.device)
    points = (_slots(p) + start) / p.shape[-1]
    index = torch.searchsorted(p.cumsum(-1), points, right=True)
    last_possible = torch.where(p > 0, _slots(p), 0).amax(-1, keepdim=True)
    return _equal(torch.minimum(index, last_possible))


@dataclass(frozen=True)
class _Survivors:
    k: int

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k = {self.k}: expected at least one survivor.")


class top_k(_Survivors):
    """The k best share the n slots evenly (beam search with k beams); fewer share them where fewer are above -inf."""

    def __call__(self, logw: Tensor, generator: Generator) -> Picked:
        return _equal(_best(logw, self.k))


class prune(_Survivors):
    """The k best go on in the first k slots; the other slots are switched off and cost nothing from then on."""

    def __call__(self, logw: Tensor, generator: Generator) -> Picked:
        return Picked(_best(logw, self.k), torch.where(_slots(logw) < self.k, 0.0, -torch.inf).expand_as(logw))


@dataclass(frozen=True)
class when_ess_below:
    """Resample a group only when its effective sample size is under `fraction` of n; else keep its weights.

    Raises ValueError unless 0 < fraction <= 1.
    """

    fraction: float
    pick: Pick = systematic

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"when_ess_below({self.fraction}): expected a fraction of n in (0, 1].")

    def __call__(self, logw: Tensor, generator: Generator) -> Picked:
        picked = self.pick(logw, generator)
        low = (ess(logw) < self.fraction * logw.shape[-1])[:, None]
        stays = Picked(_slots(logw).expand_as(logw), torch.log_softmax(logw, -1))
        return Picked(torch.where(low, picked.index, stays.index), torch.where(low, picked.logw, stays.logw))


def _best(logw: Tensor, k: int) -> Tensor:
    """(P, n): the k best of each group in turn, over and over."""
    n = logw.shape[-1]
    if k > n:
        raise ValueError(f"{k} of {n} particles cannot be kept: expected k <= n.")
    order = torch.sort(logw, dim=-1, descending=True, stable=True).indices
    alive = (~torch.isneginf(logw)).sum(-1, keepdim=True).clamp(1, k)
    return order.gather(-1, _slots(logw) % alive)


def _probabilities(logw: Tensor) -> Tensor:
    only_first = (_slots(logw) == 0).to(logw.dtype)
    return torch.where(torch.isneginf(logw).all(-1, keepdim=True), only_first, torch.softmax(logw, -1))


def _slots(logw: Tensor) -> Tensor:
    return torch.arange(logw.shape[-1], device=logw.device)


def _equal(index: Tensor) -> Picked:
    return Picked(index, torch.zeros(index.shape, device=index.device))
