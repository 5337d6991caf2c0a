"""Rewards for looking like something: an art style, a reference picture's texture, a reference picture's strokes."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.rewards.analytic import filtered
from steer.rewards.base import Reward
from steer.rewards.border import unknown
from steer.rewards.reference import Picture, picture, resized
from steer.zoo.data import CELL, STYLES

SOBEL = [[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]
FLAT = 1e-6  # keeps the gradient of an edge's magnitude finite where there is no edge


@dataclass(frozen=True)
class StyleMatch(Reward):
    """How much a picture is in a style, by the embedded `emoji-style` network on 64 x 64 pixels.

    style   one of `steer.zoo.data.STYLES`: log p(style | picture), in (-inf, 0]
            or a reference (tensor (3, h, w) in [0, 1], PIL image, path): minus the relative Gram distance, (-inf, 0],

                -mean over stages l of |G_l(x) - G_l(ref)|^2 / |G_l(ref)|^2,    G = F F^T / (h w),  F (c, h w)

    The Gram form is Gatys et al. 2015 (arXiv 1508.06576). Raises ValueError for what is neither style nor picture.
    """

    style: str | Picture
    batch: int | None = field(default=64, repr=False)
    differentiable = True

    def __post_init__(self):
        if isinstance(self.style, str) and self.style in STYLES:
            return
        if isinstance(self.style, str) and not Path(self.style).exists():
            raise unknown("style", self.style, STYLES, "Or give a reference: a path, a PIL image or a tensor.")
        object.__setattr__(self, "style", picture(self.style))

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        net, images = _net(images.device), resized(images, (CELL, CELL))
        if isinstance(self.style, str):
            return net(images).log_softmax(-1)[:, STYLES.index(self.style)]
        goals = _grams_of(self.style, images.device)
        found = [gram(features) for features in net.features(images)]
        apart = [(g - goal).square().sum((1, 2)) / goal.square().sum() for g, goal in zip(found, goals)]
        return -torch.stack(apart).mean(0)


@dataclass(frozen=True)
class EdgeSimilarity(Reward):
    """Cosine of the Sobel edge-magnitude maps of picture and reference: [0, 1]; 0 for a picture without edges.

    reference   tensor (3, h, w) in [0, 1], PIL image or path, resized to the picture; else ValueError

    It serves as the stroke reward of CoDe (arXiv 2502.00968), with a fixed filter in place of a network.
    """

    reference: Picture | str | os.PathLike
    differentiable = True

    def __post_init__(self):
        object.__setattr__(self, "reference", picture(self.reference))

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return F.cosine_similarity(edges(images).flatten(1), edges(self.reference.at(images)).flatten(1))


def gram(features: Tensor) -> Tensor:
    """G = F F^T / (h w) of features (b, c, h, w): (b, c, c)."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def edges(images: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient of the luminance, (b, h - 2, w - 2); exactly 0 where it is flat."""
    steps = filtered(images, SOBEL, [list(row) for row in zip(*SOBEL)])
    return (steps.square().sum(1) + FLAT**2).sqrt() - FLAT


def _net(device: torch.device) -> Any:
    from steer import zoo

    return zoo.style_net().to(device)


@functools.lru_cache(maxsize=64)
def _grams_of(reference: Picture, device: torch.device) -> list[Tensor]:
    with torch.no_grad():
        return [gram(f) for f in _net(device).features(resized(reference.pixels.to(device), (CELL, CELL)))]
