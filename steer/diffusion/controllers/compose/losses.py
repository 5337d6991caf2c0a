"""What maps of attention say against a prompt: pure functions, (rows, ..., h, w) -> (rows,).

A map says where a picture looks at a word. `token_softmax` makes shares of attention of them, which most losses take.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

UNIT_GRID = 16
"""The side of the maps that the papers' constants belong to."""


def token_softmax(maps: Tensor, factor: float = 100.0) -> Tensor:
    """softmax over tokens of factor x maps (rows, tokens, h, w), which come without the start token and the last."""
    return torch.softmax(factor * maps, dim=1)


def blur(maps: Tensor, kernel: int = 3, sigma: float = 0.5) -> Tensor:
    """Maps under a Gaussian of `sigma` pixels, cut to kernel x kernel, reflected at the edges."""
    from torchvision.transforms.v2.functional import gaussian_blur

    return gaussian_blur(maps, [kernel, kernel], [sigma, sigma])


def peaks(maps: Tensor) -> Tensor:
    """max over places, (rows, k)."""
    return maps.flatten(2).amax(-1)


def excite(maps: Tensor) -> Tensor:
    """Attend-and-Excite (arXiv 2301.13826): max over entities s of 1 - max_xy A_s, of blurred shares of attention."""
    return (1 - peaks(maps)).amax(1)


def shared(maps: Tensor) -> Tensor:
    """Mean over pairs of sum min(A_s, A_r) / sum (A_s + A_r), from 0 to 1/2; 0 without a pair."""
    one, other = _pairs(maps)
    if one.shape[1] == 0:
        return 0 * maps.flatten(1).sum(1)
    return (_sum(torch.minimum(one, other)) / _sum(one + other)).mean(1)


def separate(maps: Tensor) -> Tensor:
    """SAGA's loss (arXiv 2508.13866), (L1 + L2) / 2: that of `excite`, and how much the entities share."""
    return (excite(maps) + shared(maps)) / 2


def retention(maps: Tensor, masks: Tensor) -> Tensor:
    """1 - sum min(A, M) / sum (A + M), between 1/2 and 1, for masks (k, h, w) of 0 and 1; its mean over entities."""
    masks = masks.to(maps)
    return (1 - _sum(torch.minimum(maps, masks)) / _sum(maps + masks)).mean(1)


def normalised(maps: Tensor) -> Tensor:
    """n(A): each map from its least value, 0, to its largest, 1."""
    flat = maps.flatten(2)
    low, high = flat.amin(-1)[..., None, None], flat.amax(-1)[..., None, None]
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """ov(A, B) = sum n(A) n(B) / sum (n(A) + n(B)), (rows, k); 1/2 for equal maps of 0 and 1, less for all others."""
    one, other = normalised(one), normalised(other)
    return _sum(one * other) / _sum(one + other).clamp_min(torch.finfo(one.dtype).tiny)


def mixing(maps: Tensor) -> Tensor:
    """Sum over pairs of ov(A_i, A_j): entities at one place (arXiv 2503.06506)."""
    return overlap(*_pairs(maps)).sum(1)


def gaps(maps: Tensor, others: Tensor, factor: float = 1000.0) -> Tensor:
    """g = sum over others j of max(0, max_xy (A^ - A^_j)), (rows, k) for maps (rows, k, h, w), others (rows, m, h, w).

    A^ = factor / 256 A / mean(A): factor A / sum(A) for the papers' 16 x 16 maps, and as large on any other grid.
    """
    maps, others = (factor / UNIT_GRID**2 * m / m.mean((-1, -2), keepdim=True) for m in (maps, others))
    return (maps[:, :, None] - others[:, None]).flatten(3).amax(-1).clamp_min(0).sum(2)


def missing(maps: Tensor, factor: float = 1000.0) -> Tensor:
    """Sum over entities i of max(0, 1 - g_i / (n - 1)), g as in `gaps`: entities that never stand out (2503.06506).

    A single entity has nobody to stand out from: 1 - max_xy A then.
    """
    n = maps.shape[1]
    if n == 1:
        return 1 - peaks(maps)[:, 0]
    return (1 - gaps(maps, maps, factor) / (n - 1)).clamp_min(0).sum(1)


def attribute(attributes: Tensor, nouns: Tensor) -> Tensor:
    """Sum over (attribute, noun) of 1 - ov(A_adj, A_noun), maps (rows, k, h, w) each (2503.06506). At least k / 2."""
    return (1 - overlap(attributes, nouns)).sum(1)


def centres(maps: Tensor) -> Tensor:
    """Centres of mass (rows, k, 2), x and y, y downwards, in units of a 16 x 16 map."""
    height, width = maps.shape[-2:]
    share = maps / maps.sum((-1, -2), keepdim=True)
    across, down = (torch.arange(size).to(maps) for size in (width, height))
    x, y = (share.sum(-2) * across).sum(-1), (share.sum(-1) * down).sum(-1)
    return torch.stack([x * UNIT_GRID / width, y * UNIT_GRID / height], -1)


def spatial(maps: Tensor, relations: Sequence[tuple[str, int, int]]) -> Tensor:
    """Sum over (kind, one, other) of sigmoid(E(one) - E(other)), E the centre along the axis of the kind (2503.06506).

    "left of" along x, "above" along y; "right of" and "below" with one and other exchanged. Kinds as `words.KINDS`
    without "and".
    """
    found = centres(maps)
    total = 0 * found[:, 0, 0]
    for kind, one, other in relations:
        first, second = (one, other) if kind in ("left of", "above") else (other, one)
        axis = 0 if kind in ("left of", "right of") else 1
        total = total + torch.sigmoid(found[:, first, axis] - found[:, second, axis])
    return total


def _pairs(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps of each pair i < j, (rows, pairs, h, w)."""
    one, other = torch.triu_indices(maps.shape[1], maps.shape[1], offset=1).to(maps.device)
    return maps[:, one], maps[:, other]


def _sum(maps: Tensor) -> Tensor:
    return maps.sum((-1, -2))


def box_masks(boxes: Sequence[tuple[float, float, float, float]], height: int, width: int) -> Tensor:
    """(k, h, w) masks of boxes (left, top, right, bottom) in fractions of the picture: 1 where a cell's centre lies in.

    Raises ValueError for a box that does not lie in the picture or holds no cell's centre.
    """
    y, x = ((torch.arange(size) + 0.5) / size for size in (height, width))
    masks = []
    for left, top, right, bottom in boxes:
        inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1) or not inside.any():
            raise ValueError(
                f"box {(left, top, right, bottom)} on maps of {height} x {width}: expected 0 <= left < right <= 1 and "
                "0 <= top < bottom <= 1, with room for a cell of the map."
            )
        masks.append(inside)
    return torch.stack(masks).float()
