"""What style networks are trained on, and what the style of a region is measured by.

Features are lists of (b, c, h, w), one a stage of an encoder; a mask is that of the picture, (b or 1, 1, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from steer.transfer.layers import fresh
from steer.transfer.statistics import moments

Features = Sequence[Tensor]


def gram(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """G = sum m f f^T / sum m over the places of features (b, c, h, w): (b, c, c); arXiv 1508.06576."""
    flat = features.float().flatten(2)
    if mask is None:
        return flat @ flat.mT / flat.shape[2]
    weight = mask.float().expand(len(features), -1, -1, -1).flatten(2)
    return (weight * flat) @ flat.mT / weight.sum(2, keepdim=True).clamp_min(1e-5)


def content_distance(x: Features, y: Features) -> Tensor:
    """Mean square difference of the last stage, (b,)."""
    return (x[-1].float() - y[-1].float()).square().flatten(1).mean(1)


def moment_distance(x: Features, y: Features, mask: Tensor | None = None, style_mask: Tensor | None = None) -> Tensor:
    """sum over stages of mean (mu(x) - mu(y))^2 + mean (sigma(x) - sigma(y))^2, (b,); arXiv 1703.06868."""
    total = torch.zeros(())
    for ours, theirs in zip(x, y, strict=True):
        a, b = moments(ours, mask=fresh(mask, ours)), moments(theirs, mask=fresh(style_mask, theirs))
        total = total + ((a.mean - b.mean).square() + (a.std - b.std).square()).mean((1, 2, 3))
    return total


def gram_distance(x: Features, y: Features, mask: Tensor | None = None, style_mask: Tensor | None = None) -> Tensor:
    """sum over stages of |G(x) - G(y)|^2 / c^2, (b,); arXiv 1705.06830."""
    total = torch.zeros(())
    for ours, theirs in zip(x, y, strict=True):
        apart = gram(ours, fresh(mask, ours)) - gram(theirs, fresh(style_mask, theirs))
        total = total + apart.square().mean((1, 2))
    return total


def total_variation(pictures: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, (b,)."""
    across, down = pictures.diff(dim=-1).abs(), pictures.diff(dim=-2).abs()
    return across.flatten(1).mean(1) + down.flatten(1).mean(1)


def sliced_distance(
    x: Tensor,
    y: Tensor,
    generator: Generator,
    mask: Tensor | None = None,
    style_mask: Tensor | None = None,
    projections: int = 50,
    levels: int = 64,
) -> Tensor:
    """Sliced earth mover's distance of the colours of two pictures (c, h, w), inside their masks (1, h, w): a number.

    The mean over random unit directions of the mean absolute difference of the projections' quantiles, at `levels`
    levels, since regions differ in size. Raises ValueError for an empty mask.
    """
    directions = F.normalize(torch.randn(projections, len(x), generator=generator), dim=1)
    found = []
    for picture, inside in ((x, mask), (y, style_mask)):
        pixels = picture.flatten(1) if inside is None else picture[:, inside[0] > 0.5]
        if pixels.shape[1] == 0:
            raise ValueError("a mask has no pixel inside: expected a region of the picture.")
        at = (torch.arange(levels) + 0.5) / levels
        found.append((directions.to(pixels) @ pixels).quantile(at.to(pixels), dim=1))
    return (found[0] - found[1]).abs().mean()
