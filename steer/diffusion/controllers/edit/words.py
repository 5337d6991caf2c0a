"""Where source and particles look at some words, in the course of one network call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from steer.diffusion.attention import Ask, Attend, TokenMaps
from steer.diffusion.controllers.edit.source import Rows

Words = tuple[Sequence[int], Sequence[int]]
"""Positions of tokens: of the source's prompt, of the particles'."""


class Foreground(TokenMaps):
    """Keeps the maps of words in a call on x (b, ...) and a source beside it, and tells where they are looked at."""

    def __init__(self, words: Words, x: Tensor):
        super().__init__([*words[0], *words[1]], ratio_of(x))
        self.x, self.split = x, len(words[0])

    def __call__(self, ask: Ask, attend: Attend) -> Tensor:
        self.rows = Rows.of(self.x)
        return super().__call__(ask, attend)

    def shares(self, shape: tuple[int, int]) -> Tensor:
        """(particles + 1, h, w): what part of its most looked-at place each place is looked at; last, the source's."""
        maps = self.rows.conditional(self.mean())
        mine, theirs = self.rows.mine(maps)[:, self.split :], self.rows.theirs(maps)[:, : self.split]
        both = torch.cat([mine.sum(1), theirs.sum(1)])[:, None]
        smooth = max_pool2d(interpolate(both, shape, mode="bilinear"), 3, stride=1, padding=1)[:, 0]
        return smooth / smooth.amax((1, 2), keepdim=True).clamp(min=1e-12)


def check_words(words: Words | None) -> None:
    """Raises ValueError unless there are words on either side."""
    if words is not None and (len(words) != 2 or not all(len(side) for side in words)):
        raise ValueError(
            f"words = {words}: expected positions of tokens in the source's prompt, and in the particles', as "
            "((2,), (2,)); `aligned(...).changed` holds those of the words that differ, if both have some."
        )


def ratio_of(x: Tensor) -> float:
    """Height : width of latents (b, c, h, w); packed ones are taken for square."""
    return x.shape[-2] / x.shape[-1] if x.ndim == 4 else 1.0
