"""Picks that change from look to look, or that look at the particles themselves: see `steer.pick`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from steer.pick import Pick, alive, equal, share, slots


class Seen(NamedTuple):
    """What a search has seen when it picks.

    look    number of this look, from 0
    scored  (P,) how many particles it has scored so far, at this look too
    scores  (P, n) the scores of this look, -inf for pruned and failed particles
    before  (P, n) what the ancestor of every particle scored at the last look; -inf at the first
    x0      (P, n, ...) the clean estimates
    """

    look: int
    scored: Tensor
    scores: Tensor
    before: Tensor
    x0: Tensor


class Planned:
    """A pick that changes from look to look, or that looks at the particles themselves.

    copies            False: no particle ever continues in more than one slot
    first(n, looks)   how many of n particles start, in a run with so many looks before its end (None: not known ahead)
    at(seen) -> Pick  the pick of one look
    """

    copies = True

    def first(self, n: int, looks: int | None) -> int:
        return n

    def at(self, seen: Seen) -> Pick:
        raise NotImplementedError


@dataclass(frozen=True)
class narrow(Planned):
    """Fewer particles from look to look: the `keep` best share the slots that are still on.

    widths  slots in the first, second, ... stretch between looks; the last holds until the end
    keep    None: as many as there are slots, so that nothing is copied (early pruning); 1: the best alone is continued
            in all of them (CoDe with a sample schedule, as in UniCoDe, arXiv 2512.12339)

    Raises ValueError for widths under 1 or that grow, for keep < 1, and at the start of a run whose n is not the first
    width or which has fewer stretches than there are widths.
    """

    widths: tuple[int, ...]
    keep: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.widths or self.widths[-1] < 1 or any(b > a for a, b in zip(self.widths, self.widths[1:])):
            raise ValueError(f"widths {self.widths}: expected one or more, none under 1, none above the one before it.")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep = {self.keep}: expected at least one survivor, or None for one a slot.")

    @property
    def copies(self) -> bool:  # type: ignore[override]
        return self.keep is not None

    def first(self, n: int, looks: int | None) -> int:
        if n != self.widths[0]:
            raise ValueError(
                f"widths {self.widths} begin with {self.widths[0]} particles, but the run has n = {n}: "
                f"pass n={self.widths[0]}, or begin the widths with {n}."
            )
        if looks is not None and len(self.widths) > looks + 1:
            raise ValueError(
                f"widths {self.widths}: the last is never reached, as the run has {looks + 1} stretches between looks; "
                "expected at most as many widths. Look more often, run more steps, or leave some out."
            )
        return n

    def at(self, seen: Seen) -> Pick:
        width = self.widths[min(seen.look + 1, len(self.widths) - 1)]
        keep = width if self.keep is None else min(self.keep, width)
        return lambda logw, generator: share(logw, keep, width)


@dataclass(frozen=True)
class roll_over(Planned):
    """The best particle continues in as many slots as its children seem to need: unspent quota rolls over.

    quota  particles a look on average, 1 <= quota <= n. n is the most that a look may have.

    Where a child has beaten the last look's best score, the next stretch gets as many slots as came, in slot order, up
    to the first such child; where none has, it gets all that is saved. In all looks together no more than quota x looks
    particles are scored. This is rollover budget forcing (arXiv 2503.19385) with one batch a look in place of one child
    at a time: the children needed are foretold by the last look. Raises ValueError for a quota out of bounds.
    """

    quota: float

    def __post_init__(self):
        if not self.quota >= 1:
            raise ValueError(
                f"quota = {self.quota}: expected at least 1 particle a look; less does not pay for one trajectory."
            )

    def first(self, n: int, looks: int | None) -> int:
        if self.quota > n:
            raise ValueError(
                f"quota = {self.quota} of n = {n} particles: expected quota <= n, where n is the most that a look may "
                "have: pass a larger n or a smaller quota."
            )
        return int(self.quota)

    def at(self, seen: Seen) -> Pick:
        n = seen.scores.shape[-1]
        better = seen.scores > seen.before.amax(-1, keepdim=True)
        needed = torch.where(better.any(-1), better.int().argmax(-1) + 1, n)
        if seen.look == 0:  # there is nothing to beat yet
            needed = torch.full_like(needed, int(self.quota))
        saved = torch.full_like(seen.scored, self.quota * (seen.look + 2), dtype=torch.double) - seen.scored
        width = torch.minimum(needed, saved.floor().long()).clamp(1, n)[:, None]
        return lambda logw, generator: share(logw, 1, width)


@dataclass(frozen=True)
class diverse(Planned):
    """k particles that are good and unlike each other share the n slots evenly; `weight=0` is `top_k(k)`.

    One after the other is chosen by  log w_i - weight max over the chosen j of cos(f_i, f_j),  where f are the clean
    estimates less the mean of their group: greedy group selection, after arXiv 2508.15773 and diverse beam search,
    arXiv 1610.02424. Raises ValueError for k < 1 and weight < 0.
    """

    k: int
    weight: float = 1.0

    def __post_init__(self):
        if self.k < 1 or not self.weight >= 0:
            raise ValueError(f"{self!r}: expected at least one survivor and a weight >= 0.")

    def at(self, seen: Seen) -> Pick:
        apart = seen.x0.flatten(2).float() if seen.x0.dim() > 2 else seen.x0.float()[..., None]
        unit = torch.nn.functional.normalize(apart - apart.mean(1, keepdim=True), dim=-1)
        alike = unit @ unit.mT
        return lambda logw, generator: equal(_unlike(logw, self.weight * alike.to(logw.device), self.k))


def _unlike(logw: Tensor, alike: Tensor, k: int) -> Tensor:
    """(P, n): k in turn, over and over, each the best after a deduction for the most alike of those before it."""
    if k > logw.shape[-1]:
        raise ValueError(f"{k} of {logw.shape[-1]} particles cannot be kept: expected k <= n.")
    value, left, chosen = logw, logw, []
    deduction = torch.full_like(logw, -torch.inf)
    for _ in range(k):
        chosen.append(value.argmax(-1, keepdim=True))
        left = left.scatter(-1, chosen[-1], -torch.inf)
        deduction = torch.maximum(deduction, alike.take_along_dim(chosen[-1][..., None], 1)[:, 0])
        value = left - deduction
    return torch.cat(chosen, -1).gather(-1, slots(logw) % alive(logw, k))
