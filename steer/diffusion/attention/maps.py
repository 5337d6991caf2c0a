"""Where a picture looks at its words: attention probabilities of chosen tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from steer.diffusion.attention.attending import Ask, Attend


def probabilities(ask: Ask, tokens: Sequence[int] | slice = slice(None)) -> Tensor:
    """(rows, heads, picture tokens, chosen tokens): how much of its attention each picture token pays to words.

    The softmax runs over all keys: of a joint site over the picture's own too. Computed beside the attention itself,
    for the chosen columns alone: attention goes on through torch's own kernel.
    """
    scale = ask.scale or 1 / math.sqrt(ask.query.shape[-1])
    logits = scale * ask.query[..., ask.picture, :].float() @ ask.key.float().transpose(-1, -2)
    if ask.mask is not None:
        logits = logits.masked_fill(~ask.mask, -torch.inf) if ask.mask.dtype == torch.bool else logits + ask.mask
    words = logits[..., ask.words]
    return (words - logits.logsumexp(-1, keepdim=True)).exp()[..., tokens]


def grid(tokens: int, ratio: float = 1.0) -> tuple[int, int]:
    """(height, width) of a picture of so many tokens whose sides are as height : width = ratio.

    Raises ValueError if there is no such grid.
    """
    height = round(math.sqrt(tokens * ratio))
    if height < 1 or tokens % height or not math.isclose(height * height, tokens * ratio, rel_tol=0.2):
        raise ValueError(f"{tokens} tokens make no picture with sides as {ratio:g} : 1.")
    return height, tokens // height


class TokenMaps:
    """An edit that changes nothing and keeps the maps of chosen tokens, averaged over heads, site by site.

    tokens  positions among the text's tokens
    ratio   height : width of the picture

    With it at work (`attending(network, sites, maps)`) every call of the network leaves its maps in `found`, by the
    name of the site; gradients flow through them.
    """

    def __init__(self, tokens: Sequence[int] | slice = slice(None), ratio: float = 1.0):
        self.tokens, self.ratio = tokens, ratio
        self.found: dict[str, Tensor] = {}

    def __call__(self, ask: Ask, attend: Attend) -> Tensor:
        found = probabilities(ask, self.tokens).mean(1)
        height, width = grid(found.shape[1], self.ratio)
        self.found[ask.site.name] = rearrange(found, "rows (h w) tokens -> rows tokens h w", h=height, w=width)
        return attend(ask)

    def mean(self, side: int | None = None) -> Tensor:
        """(rows, tokens, h, w): the mean over all sites, brought to the grid of height `side`; None: the finest one's.

        Raises ValueError if no call of the network was seen.
        """
        if not self.found:
            raise ValueError("no attention was seen yet: call the network while the maps are at work.")
        height = side or max(one.shape[-2] for one in self.found.values())
        size = next((one.shape[-2:] for one in self.found.values() if one.shape[-2] == height), None)
        size = (height, round(height / self.ratio)) if size is None else size
        every = [
            one if one.shape[-2:] == size else interpolate(one, size, mode="bilinear") for one in self.found.values()
        ]
        return torch.stack(every).mean(0)
