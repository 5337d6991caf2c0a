"""Patch swap: a hole filled with the patches of its surroundings."""

from __future__ import annotations

import torch
from einops import einsum
from torch import Tensor
from torch.nn.functional import fold, max_pool2d, normalize, unfold


def patch_swap(features: Tensor, mask: Tensor, size: int = 3) -> Tensor:
    """Every patch p_i that touches the hole becomes the known patch most like it (arXiv 1711.08590).

        j* = argmax_j <p_i, q_j> / (|p_i| |q_j|),    where patches overlap: their mean

    features  (b, c, h, w) latents or a network's, with something in the hole
    mask      (h, w), 1 in the hole; what is not in it stays as it is
    size      of a patch, in pixels of the features; stride 1

    Both steps are convolutions, with the known patches as filters. Raises ValueError for a mask of another shape, and
    where no patch is known as a whole.
    """
    if mask.shape != features.shape[-2:] or not 1 <= size <= min(mask.shape):
        raise ValueError(
            f"a mask {tuple(mask.shape)} and patches of {size} for features {tuple(features.shape)}: expected a mask "
            f"(h, w) = {tuple(features.shape[-2:])} and a patch that fits into it."
        )
    hole = mask.to(features.device).bool()
    touched = max_pool2d(hole[None, None].float(), size, stride=1).flatten() > 0
    if touched.all():
        raise ValueError(f"no {size} x {size} patch lies outside of the hole; take a smaller hole or size.")
    if not touched.any():
        return features
    patches = unfold(features, size)  # (b, c size^2, places)
    known, ours = patches[..., ~touched], patches[..., touched]
    alike = einsum(normalize(known, dim=1), ours, "b d known, b d ours -> b known ours")  # |p_i| changes no argmax
    best = alike.argmax(1)
    swapped = torch.zeros_like(patches)
    swapped[..., touched] = known.gather(2, best[:, None].expand(-1, known.shape[1], -1))
    counted = touched.to(patches).expand(1, size**2, -1)
    shape = features.shape[-2:]
    mean = fold(swapped, shape, size) / fold(counted, shape, size).clamp(min=1)
    return torch.where(hole, mean, features)
