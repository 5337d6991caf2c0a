"""From scores to masks: exact counts, ties to the lower index."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from steer.training.method import Masks

Scope = Literal["row", "tensor", "model"]


def select(scores: Mapping[str, Tensor], amount: int | float, scope: Scope = "model", keep: str = "largest") -> Masks:
    """Masks of the entries with the largest, or smallest, scores.

    scope   row: within each row of a tensor (out, ...), seen as (out, rest); tensor; model: all tensors together
    amount  a fraction (float) of each row, tensor or model, rounded up; or a count (int): in each row, or in the whole
            model, which scope tensor shares out in proportion to the tensors' sizes

    Raises ValueError for an amount that is not there, for scores that are not finite, for other scopes and keeps.
    """
    if scope not in ("row", "tensor", "model") or keep not in ("largest", "smallest"):
        raise ValueError(f"scope {scope!r}, keep {keep!r}: expected row, tensor or model, and largest or smallest.")
    if bad := [name for name, score in scores.items() if not score.isfinite().all()]:
        raise ValueError(f"scores of {bad[:4]} are not finite: look at the loss on the calibration data.")
    signed = {name: score if keep == "largest" else -score for name, score in scores.items()}
    sizes = {name: score.numel() for name, score in scores.items()}
    if scope == "row":
        rows = {name: score.reshape(len(score), -1) for name, score in signed.items()}
        return {n: _top(row, _count(amount, row.shape[1])).view_as(signed[n]) for n, row in rows.items()}
    if scope == "model":
        together = torch.cat([score.flatten() for score in signed.values()])[None]
        parts = _top(together, _count(amount, together.shape[1]))[0].split(list(sizes.values()))
        return {name: part.view_as(signed[name]) for name, part in zip(signed, parts)}
    counts = shares(amount, sizes) if isinstance(amount, int) else {n: _count(amount, s) for n, s in sizes.items()}
    return {name: _top(score.reshape(1, -1), counts[name]).view_as(score) for name, score in signed.items()}


def shares(total: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """A count shared out in proportion to sizes, by largest remainders: it adds up."""
    whole = sum(sizes.values())
    total = _count(total, whole)
    counts = {name: total * size // whole for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: -(total * sizes[name] % whole))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _count(amount: int | float, size: int) -> int:
    """Raises ValueError unless 1 <= count <= size, or 0 < fraction <= 1."""
    count = amount if isinstance(amount, int) else math.ceil(Fraction(str(amount)) * size)  # 0.07 of 100 is 7
    if count < 1 or count > size:
        raise ValueError(f"{amount} of {size} entries: expected a count in 1 .. {size} or a fraction in (0, 1].")
    return count


def _top(scores: Tensor, k: int) -> Tensor:
    """(rows, n) -> True at exactly k entries of each row."""
    if not k:  # a small tensor's share of a small count
        return torch.zeros_like(scores, dtype=torch.bool)
    least = scores.kthvalue(scores.shape[-1] - k + 1, dim=-1, keepdim=True).values
    above, tied = scores > least, scores == least
    return above | (tied & (tied.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
