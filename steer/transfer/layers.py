"""Layers of style networks that know regions: normalisation with a style's parameters, convolution and pooling.

A mask is (b or 1, 1, h, w) in [0, 1], 1 inside the region; None stands for the whole picture, and costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer.transfer.statistics import instance_norm

Style = Tensor | tuple[Tensor, Tensor] | None


class InstanceNorm(nn.Module):
    """Instance normalization with the parameters of a style: gamma (x - mu) / sqrt(var + 1e-5) + beta.

    styles  1: one gamma and beta (arXiv 1607.08022); more: a pair for each style (conditional instance normalization,
            arXiv 1610.07629); 0: none of its own, they are given at each call (arXiv 1705.06830)
    """

    def __init__(self, channels: int, styles: int = 1):
        super().__init__()
        self.channels, self.styles = channels, styles
        self.gamma = nn.Parameter(torch.ones(styles, channels)) if styles else None
        self.beta = nn.Parameter(torch.zeros(styles, channels)) if styles else None

    def forward(self, x: Tensor, style: Style = None, mask: Tensor | None = None) -> Tensor:
        """x (b, c, h, w) -> same; statistics are those inside the mask.

        style  ids (b,) of own styles, None for the only one, or a pair gamma, beta, (b or 1, c) each. Raises ValueError
               for what is none of these
        """
        gamma, beta = style if isinstance(style, tuple) else self._own(style)
        if gamma.shape[-1] != self.channels or beta.shape[-1] != self.channels:
            raise ValueError(
                f"gamma {tuple(gamma.shape)} and beta {tuple(beta.shape)}: expected (b or 1, {self.channels}) each."
            )
        return instance_norm(x, gamma[..., None, None], beta[..., None, None], mask)

    def _own(self, style: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.gamma is None or self.beta is None:
            raise ValueError("this layer has no styles of its own: give it a pair gamma, beta at each call.")
        if style is None and self.styles != 1:
            raise ValueError(f"this layer has {self.styles} styles: name one for each sample, as ids (b,).")
        if style is not None and not bool(((style >= 0) & (style < self.styles)).all()):
            raise ValueError(f"styles {style.tolist()}: expected ids from 0 to {self.styles - 1}.")
        return (self.gamma, self.beta) if style is None else (self.gamma[style], self.beta[style])


class MaskedConv(nn.Conv2d):
    """A convolution that sees a region and a ring of one pixel around it, with the weights of a plain one.

        y = conv(x m'),   m' = m dilated by 1 + expand pixels;   mask of y: min(conv_ones(m), 1)

    There is no division by the number of pixels seen, other than in partial convolution (arXiv 1804.07723): the ring of
    real content does away with dark borders. Without a mask, and with one of ones, it is a plain convolution with
    reflection padding.
    """

    def __init__(self, inside: int, outside: int, kernel: int = 3, stride: int = 1, expand: int = 0):
        super().__init__(inside, outside, kernel, stride, kernel // 2, padding_mode="reflect")
        self.expand = expand

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (b, c, h, w), mask (b or 1, 1, h, w) -> y and its mask."""
        if mask is None:
            return super().forward(x), None
        (size, _), (step, _), (pad, _) = self.kernel_size, self.stride, self.padding
        seen = F.conv2d(F.pad(mask, (pad,) * 4, mode="reflect"), mask.new_ones(1, 1, size, size), stride=step)
        return super().forward(x * dilated(mask, 1 + self.expand)), seen.clamp(max=1)


def max_pool(x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """2 x 2 max pooling of features and of their mask."""
    return F.max_pool2d(x, 2), None if mask is None else F.max_pool2d(mask, 2)


def dilated(mask: Tensor, pixels: int) -> Tensor:
    """The greatest of a mask within `pixels` to each side."""
    return F.max_pool2d(mask, 2 * pixels + 1, 1, pixels) if pixels else mask


def eroded(mask: Tensor, pixels: int) -> Tensor:
    """The least of a mask within `pixels` to each side; beyond the picture's border there is nothing."""
    return -dilated(-mask, pixels)


def feathered(mask: Tensor, pixels: int) -> Tensor:
    """A mask that fades in over so many pixels inside its border: the mean of its erosions by 0, ..., `pixels`.

    Nothing is added outside: what was 0 stays 0, and a mask of ones stays one. A line of one pixel keeps
    1 / (pixels + 1). Raises ValueError for fewer than 0 pixels.
    """
    if pixels < 0:
        raise ValueError(f"feather = {pixels}: expected 0 or more pixels.")
    return sum((eroded(mask, k) for k in range(1, pixels + 1)), mask) / (pixels + 1)


def fresh(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The picture's own mask brought to the size of features x: the share of each cell that it covers."""
    return None if mask is None else F.adaptive_avg_pool2d(mask, x.shape[-2:])
