"""What a particle's attention becomes when it may look at the features of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from steer.diffusion.attention import Ask, groups
from steer.transfer.statistics import adain

Asks = list[tuple[float, Ask]]
"""Weights and asks: the particles get the weighted sum of what these attend to."""


class Rows(NamedTuple):
    """Which rows of a branch are changed, which are looked at, and which of their tokens make the picture.

    Parts of an ask are (branches * size, heads, tokens, d).
    """

    size: int
    own: slice
    others: slice
    picture: slice

    def mine(self, part: Tensor) -> Tensor:
        """(branches, own rows, heads, picture tokens, d)."""
        return groups(part, self.size)[:, self.own, :, self.picture]

    def theirs(self, part: Tensor) -> Tensor:
        """(branches, other rows, heads, picture tokens, d)."""
        return groups(part, self.size)[:, self.others, :, self.picture]

    def pooled(self, part: Tensor) -> Tensor:
        """(branches, 1, heads, other rows * picture tokens, d): the others' tokens as those of one picture."""
        return rearrange(self.theirs(part), "branches rows heads tokens d -> branches 1 heads (rows tokens) d")

    def put(self, part: Tensor, values: Tensor) -> Tensor:
        """The part with other values for the picture tokens of one's own rows; all else is as it was."""
        part = part.clone()
        groups(part, self.size)[:, self.own, :, self.picture] = values
        return part


class Rule:
    """Which asks take the place of a particle's own; frozen, for its repr is configuration.

    The rows that are not the particle's must attend as before, wherever a site's tokens are all of the picture.
    """

    everyone: bool = False
    """True if without references all particles look at all; else at the first of them, which stays as it is."""

    @property
    def writes(self) -> tuple[str, ...]:
        """The parts of an ask that are replaced."""
        raise NotImplementedError

    def __call__(self, ask: Ask, rows: Rows) -> Asks:
        raise NotImplementedError


@dataclass(frozen=True)
class Swap(Rule):
    """Keys and values of each style in turn, looked at with queries that are partly the content's.

    q~ = tau (gamma q_content + (1 - gamma) q); the first of the other rows is the content's if gamma > 0, then come the
    styles', one a weight.
    """

    gamma: float
    tau: float
    weights: tuple[float, ...]

    @property
    def writes(self) -> tuple[str, ...]:
        return "query", "key", "value"

    def __call__(self, ask: Ask, rows: Rows) -> Asks:
        query, first = rows.mine(ask.query), 0
        if self.gamma > 0:
            query, first = query.lerp(rows.theirs(ask.query)[:, :1].expand_as(query), self.gamma), 1
        query, asks = rows.put(ask.query, self.tau * query), []
        for k, weight in enumerate(self.weights, first):
            key, value = (rows.put(part, rows.theirs(part)[:, k : k + 1]) for part in (ask.key, ask.value))
            asks.append((weight, ask.change(query=query, key=key, value=value)))
        return asks


@dataclass(frozen=True)
class Shared(Rule):
    """Some parts with the others' channel statistics over tokens, and keys and values of the others beside one's own.

    normalize  parts of an ask that are given mean and deviation of the others', by AdaIN over tokens, head by head
    read       whether the others' keys and values are looked at too
    """

    normalize: tuple[str, ...] = ("query", "key")
    read: bool = True
    everyone: bool = False

    @property
    def writes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.normalize, *(("key", "value") if self.read else ()))))

    def __call__(self, ask: Ask, rows: Rows) -> Asks:
        parts = {name: getattr(ask, name) for name in self.writes}
        for name in self.normalize:
            aligned = adain(rows.mine(parts[name]), rows.pooled(parts[name]), dim=-2)
            parts[name] = rows.put(parts[name], aligned)
        if self.read:
            if ask.mask is not None:
                raise ValueError(
                    f"{ask.site.name} masks its attention, so keys of others cannot be put beside its own; leave that "
                    "layer out."
                )
            parts |= {name: self._beside(ask, parts[name], rows) for name in ("key", "value")}
        return [(1.0, ask.change(**parts))]

    def _beside(self, ask: Ask, part: Tensor, rows: Rows) -> Tensor:
        """One's own tokens and all the others'; rows that are nobody's own read themselves as often."""
        per = groups(part, rows.size)
        found = rows.pooled(part)
        copies = found.shape[-2] // per[..., rows.picture, :].shape[-2]
        more = per[..., rows.picture, :].repeat(1, 1, 1, copies, 1)
        more[:, rows.own] = found
        if self.everyone:  # the particle is one of the others already
            words = ask.words if ask.site.kind == "joint" else slice(0)
            return torch.cat([per[..., words, :], more], -2).flatten(0, 1)
        return torch.cat([per, more], -2).flatten(0, 1)


def shares(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights of so many styles, divided by their sum; None: equal ones. Raises ValueError for others."""
    given = tuple(weights) if weights is not None else (1.0,) * count
    if len(given) != count or min(given, default=-1) < 0 or not 0 < sum(given) < float("inf"):
        raise ValueError(f"weights {given} for {count} pictures: expected one >= 0 for each, not all of them 0.")
    return tuple(weight / sum(given) for weight in given)
