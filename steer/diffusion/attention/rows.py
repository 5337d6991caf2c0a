"""Rows of a network call that belong together: the same particle's branches, and references evaluated beside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steer.diffusion.control import Denoiser
from steer.diffusion.state import Level

Cond = dict[str, Tensor]
"""{argument of the network: (b, branches, ...)}."""


def beside(denoiser: Denoiser, x: Tensor, level: Level, cond: Cond, others: Tensor, theirs: Cond) -> Tensor:
    """x0 (b, ...) of x, evaluated in one call with `others` (r, ...), which come after it; their x0 is dropped.

    theirs  conditioning of the others, (r or 1, branches, ...); a single branch stands for all. Their rows are paid for

    Raises ValueError for conditioning of another network.
    """
    rows = {name: torch.cat([leaf, _fitted(theirs, name, leaf, len(others))]) for name, leaf in cond.items()}
    return denoiser(torch.cat([x, others.to(x)]), level, rows)[: len(x)]


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
