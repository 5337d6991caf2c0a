"""Rows of a network call that belong together: the same particle's branches, and references evaluated beside."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steer.diffusion.control import Denoiser
from steer.diffusion.state import Level

Cond = dict[str, Tensor]
"""{argument of the network: (b, branches, ...)}."""


class Placed(NamedTuple):
    """The rows of a branch of the call under way: the run's own particles come first, `total` are there in all."""

    particles: int
    total: int


_PLACED: ContextVar[Placed | None] = ContextVar("rows that controllers further out have put beside", default=None)


def placed(x: Tensor) -> Placed:
    """How the rows of a call on x (b, ...) lie, after everything that was put beside so far.

    A controller asks before its call, for how many of x's rows are particles and not references of another; its edit
    asks again, for the size of its `groups`.
    """
    return _PLACED.get() or Placed(len(x), len(x))


def beside(denoiser: Denoiser, x: Tensor, level: Level, cond: Cond, others: Tensor, theirs: Cond) -> Tensor:
    """x0 (b, ...) of x, evaluated in one call with `others` (r, ...), which come after it; their x0 is dropped.

    theirs  conditioning of the others, (r or 1, branches, ...); a single branch stands for all. Their rows are paid for

    Raises ValueError for others of another shape, for conditioning of another network, and for x of other rows than
    those that a controller further out has put together.
    """
    lie = placed(x)
    if others.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"references of shape {tuple(others.shape[1:])} beside particles of shape {tuple(x.shape[1:])}: make them "
            "with the height and width of the run."
        )
    if lie.total != len(x):
        raise ValueError(
            f"{len(x)} rows came where {lie.total} were put together: guidance stands between two controllers that "
            "evaluate references; list it before both."
        )
    rows = {name: torch.cat([leaf, _fitted(theirs, name, leaf, len(others))]) for name, leaf in cond.items()}
    token = _PLACED.set(Placed(lie.particles, len(x) + len(others)))
    try:
        return denoiser(torch.cat([x, others.to(x)]), level, rows)[: len(x)]
    finally:
        _PLACED.reset(token)


def _fitted(theirs: Cond, name: str, like: Tensor, rows: int) -> Tensor:
    if name not in theirs or theirs[name].shape[2:] != like.shape[2:]:
        found = {key: tuple(leaf.shape[2:]) for key, leaf in theirs.items()}
        raise ValueError(
            f"references come with conditioning {found}, but the network takes {name} {tuple(like.shape[2:])}; make "
            "them with the pipeline that is steered."
        )
    return theirs[name][:, -like.shape[1] :].to(like).expand(rows, like.shape[1], *like.shape[2:])


def groups(rows: Any, size: int) -> Any:
    """(branches * size, ...) -> (branches, size, ...): the rows of a call on `size` particles and references."""
    return rows.unflatten(0, (-1, size))
