"""From log-weights to ancestors: who continues, for each prompt's group of particles.

A pick is a function (logw (P, n) float32, generator) -> Picked(index (P, n), logw (P, n)). `index[p, k]` is the
particle that slot k of group p continues; `logw` are the weights that remain, -inf for a slot that is pruned. A
log-weight of -inf never continues; where all of a group are -inf every slot continues particle 0. Ties go to the lower
number. Everything stays on the device of the weights, where the generator must be too. Both wings of steer use these.

Picks that change from look to look, or that look at the particles, are in `steer.plan`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import NamedTuple

import torch
from torch import Generator, Tensor


class Picked(NamedTuple):
    index: Tensor
    logw: Tensor


Pick = Callable[[Tensor, Generator], Picked]


class rule:
    """Makes a pick without settings print as its name: the repr of a controller is its configuration."""

    def __init__(self, pick: Pick, copies: bool = True):
        update_wrapper(self, pick)
        self.copies = copies

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
    return equal(logw.argmax(-1, keepdim=True).expand_as(logw))


@rule
def one(logw: Tensor, generator: Generator) -> Picked:
    """Every slot continues one particle, drawn with probability softmax(logw) (soft best-of-N, SVDD)."""
    return equal(torch.multinomial(_probabilities(logw), 1, generator=generator).expand_as(logw))


@rule
def multinomial(logw: Tensor, generator: Generator) -> Picked:
    """Every slot draws its own ancestor with probability softmax(logw)."""
    return equal(torch.multinomial(_probabilities(logw), logw.shape[-1], replacement=True, generator=generator))


@rule
def systematic(logw: Tensor, generator: Generator) -> Picked:
    """One uniform number a group and n equally spaced points: the lowest-variance unbiased resampling.

    Particle k gets floor(n p_k) or ceil(n p_k) children. Douc & Cappe 2005, arXiv cs/0507025.
    """
    p = _probabilities(logw.double())
    start = torch.rand(len(p), 1, generator=generator, dtype=p.dtype, device=p.device)
    points = (slots(p) + start) / p.shape[-1]
    index = torch.searchsorted(p.cumsum(-1), points, right=True)
    last_possible = torch.where(p > 0, slots(p), 0).amax(-1, keepdim=True)
    return equal(torch.minimum(index, last_possible))


@partial(rule, copies=False)
def stay(logw: Tensor, generator: Generator) -> Picked:
    """Every slot continues its own particle and keeps its weight: score only."""
    return Picked(slots(logw).expand_as(logw), torch.log_softmax(logw, -1).nan_to_num(0, neginf=-torch.inf))


@dataclass(frozen=True)
class _Survivors:
    k: int

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k = {self.k}: expected at least one survivor.")


class top_k(_Survivors):
    """The k best share the n slots evenly (beam search with k beams); fewer share them where fewer are above -inf."""

    def __call__(self, logw: Tensor, generator: Generator) -> Picked:
        return equal(_best(logw, self.k))


class prune(_Survivors):
    """The k best go on in the first k slots; the other slots are switched off and cost nothing from then on."""

    copies = False

    def __call__(self, logw: Tensor, generator: Generator) -> Picked:
        return share(logw, self.k, self.k)


@dataclass(frozen=True)
class one_in:
    """The best ceil(alive / k) of a group go on, the others are switched off: successive halving at k = 2.

    Jamieson & Talwalkar 2016, arXiv 1502.07943. Raises ValueError unless k >= 2.
    """

    k: int = 2
    copies = False

    def __post_init__(self):
        if self.k < 2:
            raise ValueError(f"one_in({self.k}) keeps all: expected k >= 2, as in one_in(2) for the better half.")

    def __call__(self, logw: Tensor, generator: Generator) -> Picked:
        kept = (alive(logw, logw.shape[-1]) + self.k - 1) // self.k
        return share(logw, kept, kept)


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

    @property
    def copies(self) -> bool:
        return getattr(self.pick, "copies", True)

    def __call__(self, logw: Tensor, generator: Generator) -> Picked:
        picked = self.pick(logw, generator)
        low = (ess(logw) < self.fraction * logw.shape[-1])[:, None]
        stays = Picked(slots(logw).expand_as(logw), torch.log_softmax(logw, -1))
        return Picked(torch.where(low, picked.index, stays.index), torch.where(low, picked.logw, stays.logw))


def _best(logw: Tensor, k: int | Tensor) -> Tensor:
    """(P, n): the k best of each group in turn, over and over; k is one number or (P, 1)."""
    n = logw.shape[-1]
    if isinstance(k, int) and k > n:
        raise ValueError(f"{k} of {n} particles cannot be kept: expected k <= n.")
    order = torch.sort(logw, dim=-1, descending=True, stable=True).indices
    return order.gather(-1, slots(logw) % alive(logw, k))


def share(logw: Tensor, keep: int | Tensor, width: int | Tensor) -> Picked:
    """The `keep` best share the first `width` slots; the others are switched off."""
    on = torch.where(slots(logw) < width, 0.0, -torch.inf)
    return Picked(_best(logw, keep), on.expand_as(logw))


def alive(logw: Tensor, most: int | Tensor) -> Tensor:
    """(P, 1) how many of each group are above -inf: at least 1, at most `most`."""
    return (~torch.isneginf(logw)).sum(-1, keepdim=True).clamp_min(1).clamp_max(most)


def _probabilities(logw: Tensor) -> Tensor:
    only_first = (slots(logw) == 0).to(logw.dtype)
    return torch.where(torch.isneginf(logw).all(-1, keepdim=True), only_first, torch.softmax(logw, -1))


def slots(logw: Tensor) -> Tensor:
    return torch.arange(logw.shape[-1], device=logw.device)


def equal(index: Tensor) -> Picked:
    return Picked(index, torch.zeros(index.shape, device=index.device))
