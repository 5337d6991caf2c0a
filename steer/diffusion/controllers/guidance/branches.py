"""The branches of guidance: the same particles under different conditionings, in one call of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.attention.rows import Cond
from steer.diffusion.control import Denoiser
from steer.diffusion.state import Level

FREE, ASKED, CONCEPT, WEAK = 0, 1, 2, -1
"""Unconditional (or negative prompt), conditional, the first of the concepts, conditional but made worse."""


def evaluate(
    denoiser: Denoiser,
    x: Tensor,
    level: Level,
    cond: Cond,
    which: Sequence[int],
    concepts: Sequence[Cond] = (),
    weak: Denoiser | None = None,
) -> list[Tensor]:
    """x0 (b, ...) of each branch asked for: one call for all of the denoiser's, and one for the WEAK branch.

    Rows lie branch by branch, as a pipeline lays them. Raises ValueError for a branch that cond does not hold.
    """
    if not _is_cond(cond):
        raise ValueError(
            f"guidance needs conditioning {{argument: (b, 2, ...)}}, unconditional first; got {type(cond).__name__} "
            f"{list(cond) if isinstance(cond, dict) else ''}. Pass cond=denoiser_of(pipe, prompt).cond to `sample`."
        )
    own = [branch for branch in which if branch != WEAK]
    found: dict[int, Tensor] = {}
    if own:
        rows = {k: torch.cat([_argument(cond, k, branch, concepts) for branch in own])[:, None] for k in cond}
        found = dict(zip(own, denoiser(torch.cat([x] * len(own)), level, rows).chunk(len(own))))
    if weak is not None and WEAK in which:
        found[WEAK] = weak(x, level, {name: leaf[:, -1:] for name, leaf in cond.items()})
    return [found[branch] for branch in which]


def _is_cond(cond: Any) -> bool:
    leaves = list(cond.values()) if isinstance(cond, dict) else []
    return bool(leaves) and all(isinstance(leaf, Tensor) and leaf.ndim > 1 for leaf in leaves)


def _argument(cond: Cond, name: str, branch: int, concepts: Sequence[Cond]) -> Tensor:
    """One argument (b, ...) of one branch."""
    leaf = cond[name]
    if branch == ASKED:
        return leaf[:, -1]
    if branch >= CONCEPT:
        return _concept(concepts[branch - CONCEPT], name, leaf[:, -1])
    if leaf.shape[1] != 2:
        raise ValueError(
            f"guidance needs the unconditional branch, but {name} holds {leaf.shape[1]} branch(es). Call the pipeline, "
            "or denoiser_of, with guidance_scale > 1; a denoiser of your own takes cond {argument: (b, 2, ...)}, "
            "unconditional first. Two Guides in one chain do not go: put what both do into one."
        )
    return leaf[:, FREE]


def _concept(concept: Cond, name: str, like: Tensor) -> Tensor:
    if name not in concept or concept[name].shape[2:] != like.shape[1:]:
        found = {key: tuple(leaf.shape[2:]) for key, leaf in concept.items()}
        raise ValueError(
            f"a concept holds {found}, but the network takes {name} {tuple(like.shape[1:])}; make it by "
            "denoiser_of(pipe, text).cond from the pipeline that is steered."
        )
    return concept[name][:1, -1].to(like).expand(like.shape)
