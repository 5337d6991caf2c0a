"""Where an edit acts: which of the columns that a pass computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from steer.language.passes import Pass, repeated

Mask = Tensor | bool
"""(rows or 1, columns of the pass) bool, or True for all and False for none of them, which costs nothing."""


class Scope(Protocol):
    def __call__(self, now: Pass, hidden: Tensor) -> Mask: ...


@dataclass(frozen=True)
class Columns:
    """Columns [first, last) of the padded sequence, counted from where the prompt ends; None is no bound.

    Outside `generate` all is prompt, unless `length` says how many columns are.
    """

    first: int | None = None
    last: int | None = None
    length: int | None = None

    def __call__(self, now: Pass, hidden: Tensor) -> Mask:
        end = now.start + now.count
        prompt = now.prompt if now.prompt is not None else self.length if self.length is not None else end
        low = 0 if self.first is None else max(prompt + self.first - now.start, 0)
        high = now.count if self.last is None else min(prompt + self.last - now.start, now.count)
        if low >= high:
            return False
        if (low, high) == (0, now.count):
            return True
        place = torch.arange(now.count, device=hidden.device)
        return ((place >= low) & (place < high))[None]


@dataclass(frozen=True)
class Positions:
    """Tokens by their number in their row, padding not counted; negative ones count back from the prompt's end."""

    numbers: tuple[int, ...]
    length: int | None = None

    def __call__(self, now: Pass, hidden: Tensor) -> Mask:
        end = now.prompt if now.prompt is not None else self.length
        end = now.start + now.count if end is None else end
        place = torch.arange(now.start, now.start + now.count, device=hidden.device)[None]
        pads = 0 if now.pads is None else now.pads.to(hidden.device)
        wanted = [place == (pads + k if k >= 0 else end + k) for k in self.numbers]
        return torch.stack(torch.broadcast_tensors(*wanted)).any(0) & (place >= pads)


@dataclass(frozen=True, eq=False)
class Chosen:
    """A mask (rows, length) of the first columns, padding counted; what comes after it is not chosen."""

    mask: Tensor

    def __call__(self, now: Pass, hidden: Tensor) -> Mask:
        mask = repeated(self.mask.to(hidden.device), len(hidden))[:, now.start : now.start + now.count]
        return torch.nn.functional.pad(mask, (0, now.count - mask.shape[1])) if mask.numel() else False


@dataclass(frozen=True)
class Tokens:
    """Tokens with one id: those that stand for an image."""

    number: int

    def __call__(self, now: Pass, hidden: Tensor) -> Mask:
        if now.tokens is None:
            raise ValueError("where='image' needs input_ids, and this call has embeddings: give a mask instead.")
        return now.tokens == self.number


def scope(where: str | Scope | Tensor, model: Any, length: int | None = None) -> Scope:
    """Read `where`.

    "all"        every column
    "prompt"     the columns of the prompt
    "generated"  the columns that predict a generated token: the last of the prompt, and what is generated. So teacher
                 forcing (with `length`, the prompt's columns) and generation agree on every token that is scored
    "last"       the last column of the prompt
    "image"      the tokens of images, in the prompt

    Also a bool mask (rows, columns of the prompt), `Positions`, or any function (Pass, hidden) -> mask. Raises
    ValueError for another name, "image" for a model without images, and a mask that is not bool (rows, columns).
    """
    if isinstance(where, Tensor):
        if where.dtype != torch.bool or where.ndim != 2:
            raise ValueError(f"a mask {where.dtype} {tuple(where.shape)}: expected bool (rows, columns of the prompt).")
        return Chosen(where)
    if isinstance(where, Positions) and where.length is None:
        return replace(where, length=length)
    if not isinstance(where, str):
        return where
    if where == "image":
        number = getattr(model.config, "image_token_id", None)
        if number is None:
            raise ValueError(f"where='image': {type(model).__name__} has no image tokens.")
        return Tokens(number)
    named = {"all": (None, None), "prompt": (None, 0), "generated": (-1, None), "last": (-1, 0)}
    if where not in named:
        raise ValueError(f"where={where!r}: expected one of {(*named, 'image')}, Positions, or a bool mask.")
    first, last = named[where]
    return Columns(first, last, length)
