"""Where a picture looks at its words: attention probabilities of chosen tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from steer_kernels import serving
from torch import Tensor
from torch.nn.functional import interpolate

from steer.diffusion.attention.attending import Ask, Attend, lone


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


def looked(ask: Ask, tokens: Sequence[int] | slice = slice(None)) -> tuple[Tensor, Tensor | None]:
    """The mean over heads of the ask's `probabilities`, (rows, picture tokens, chosen tokens), and what it attends to.

    The latter where steer_kernels has one that makes both in one pass and writes no other column; else None.
    """
    words = range(ask.key.shape[-2])[ask.words]
    chosen = words[tokens] if isinstance(tokens, slice) else [words[token] for token in tokens]
    plain = chosen and len(set(chosen)) == len(chosen) and lone(ask)
    if plain and (token_maps := serving.kernel("token_maps", ask.query)) is not None:
        output, maps = token_maps(ask.query, ask.key, ask.value, chosen, ask.scale)
        return maps[:, ask.picture], output
    return probabilities(ask, tokens).mean(1), None


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
        found, output = looked(ask, self.tokens)
        height, width = grid(found.shape[1], self.ratio)
        self.found[ask.site.name] = rearrange(found, "rows (h w) tokens -> rows tokens h w", h=height, w=width)
        return attend(ask) if output is None else output  # only now: the next edit of a site may read what was found

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
