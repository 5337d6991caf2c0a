"""Pairs of pictures in different art styles, and lines of a table of checks on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from steer import measure
from steer.zoo.data import compose, glyphs, rgba

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
CHUNK = 16
Line = dict[str, Any]


class Pairs(NamedTuple):
    """Content and reference of other names and art styles, (pairs, 4, 64, 64) each, and their (style, name)."""

    content: Tensor
    style: Tensor
    which: Tensor
    wanted: Tensor

    @property
    def truth(self) -> Tensor:
        """The content's name as it really is in the reference's style, on white."""
        return compose(glyphs()[0][self.wanted[:, 0], self.which[:, 1]])


def pairs_of(count: int, seed: int = 0) -> Pairs:
    """Random pairs: no two of one name or one art style."""
    generator = Generator().manual_seed(seed)
    pictures, names, styles = glyphs()
    a, n = (torch.randint(len(k), (count,), generator=generator) for k in (styles, names))
    b = (a + torch.randint(1, len(styles), (count,), generator=generator)) % len(styles)
    m = (n + torch.randint(1, len(names), (count,), generator=generator)) % len(names)
    return Pairs(rgba(pictures[a, n]), rgba(pictures[b, m]), torch.stack([a, n], 1), torch.stack([b, m], 1))


def compared(check: str, what: str, ours: Tensor, theirs: Tensor, sign: int = 1) -> Line:
    """A line of the table: passed if ours (pairs,) is above theirs (below, with sign -1)."""
    found = measure.interval(ours - theirs)
    return line(check, what, ours.mean(), theirs.mean(), (found.low if sign > 0 else -found.high) > 0, found)


def line(check: str, what: str, value: Any, against: Any, passed: bool, found: measure.Interval | None = None) -> Line:
    """A line of the table: a value, what it is held against, and the interval of their difference."""
    numbers = {"value": float(value), "against": float(against), "difference": None if found is None else list(found)}
    return {"check": check, "what": what, **numbers, "passed": bool(passed)}


def rising(values: Tensor) -> float:
    """Spearman's rank correlation of values with their positions."""
    from scipy.stats import spearmanr

    return float(spearmanr(range(len(values)), values.numpy()).statistic)


def chunked(call: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Call on a few rows of everything at a time."""
    return torch.cat([call(*rows) for rows in zip(*(t.split(CHUNK) for t in tensors))])
