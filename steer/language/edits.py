"""What is done to a state: add, project, ablate, clamp, rotate. `strength` is the dial of each, and 0 is the identity.

An edit takes states h (rows, tokens, d), a direction v, (d,) or (rows, 1, d), and a strength, a number or (rows, 1, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steer.rewards.border import unknown


class Edit(Protocol):
    def __call__(self, hidden: Tensor, direction: Tensor, strength: Tensor | float) -> Tensor: ...


@dataclass(frozen=True)
class Add:
    """h + s |h| v / |v|, or with relative=False h + s v (arXiv 2308.10248, 2312.06681)."""

    relative: bool = True

    def __call__(self, hidden: Tensor, direction: Tensor, strength: Tensor | float) -> Tensor:
        if self.relative:
            return hidden + (strength * norm(hidden)).to(hidden.dtype) * unit(direction)
        return hidden + strength * direction


@dataclass(frozen=True)
class Project:
    """h + s (at - <h, u>) u, u = v / |v|: at s = 1 the coordinate along v is `at`; at = 0 ablates (2406.11717)."""

    at: float = 0.0

    def __call__(self, hidden: Tensor, direction: Tensor, strength: Tensor | float) -> Tensor:
        u = unit(direction)
        return hidden + strength * (self.at - along(hidden, u)) * u


@dataclass(frozen=True)
class Clamp:
    """h + s max(at - <h, u>, 0) u: at s = 1 the coordinate along v is at least `at`."""

    at: float = 0.0

    def __call__(self, hidden: Tensor, direction: Tensor, strength: Tensor | float) -> Tensor:
        u = unit(direction)
        return hidden + strength * (self.at - along(hidden, u)).clamp_min(0) * u


@dataclass(frozen=True)
class Rotate:
    """Turn h by s radians towards v, in the plane of both and never past it: norms are kept (2510.26243, 2601.19375).

    h = c u + r w with u = v / |v|, w orthogonal to it; the angle between h and u becomes max(angle - s, 0), for s < 0
    min(angle - s, pi).
    """

    def __call__(self, hidden: Tensor, direction: Tensor, strength: Tensor | float) -> Tensor:
        u = unit(direction)
        c = along(hidden, u)
        rest = hidden - c * u
        r = norm(rest).to(hidden.dtype).clamp_min(torch.finfo(hidden.dtype).tiny)
        size, angle = torch.hypot(c, r), torch.atan2(r, c)
        angle = (angle - strength * (norm(direction) > 0)).clamp(0, torch.pi)
        return size * (torch.cos(angle) * u + torch.sin(angle) * rest / r)


EDITS: dict[str, Edit] = {
    "add": Add(),
    "project": Project(),
    "ablate": Project(0.0),
    "clamp": Clamp(),
    "rotate": Rotate(),
}


def edit(kind: str | Edit, relative: bool) -> Edit:
    """An edit by its name, or itself. Raises ValueError for another name, with close matches."""
    if not isinstance(kind, str):
        return kind
    if kind not in EDITS:
        raise unknown("edit", kind, EDITS)
    return Add(relative) if kind == "add" else EDITS[kind]


def norm(hidden: Tensor) -> Tensor:
    """|h| of each token, (rows, tokens, 1), in float32 at least: squares of half precision overflow."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    return torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=exact)


def unit(direction: Tensor) -> Tensor:
    """v / |v|, and 0 for 0, which leads nowhere."""
    size = norm(direction).to(direction.dtype)
    return direction / torch.where(size > 0, size, 1)


def along(hidden: Tensor, u: Tensor) -> Tensor:
    """<h, u>, (rows, tokens, 1)."""
    return (hidden * u).sum(-1, keepdim=True)


def kept(edited: Tensor, size: Tensor) -> Tensor:
    """The edited states with the norm that they had (GrAInS, arXiv 2507.18043): over the width of each token."""
    return edited * (size / norm(edited).clamp_min(1e-30)).to(edited.dtype)
