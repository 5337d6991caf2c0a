"""Rewards that are a formula, without a network."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.rewards.base import Reward
from steer.rewards.border import to_pil, unknown
from steer.zoo.data import COLOURS


@dataclass(frozen=True)
class Compressibility(Reward):
    """Minus the size of the picture as a JPEG file, in kilobytes of 1000 bytes: (-inf, 0).

    quality   JPEG quality, 1 to 100; 95 as in CoDe (arXiv 2502.00968), else ValueError
    """

    quality: int = 95

    def __post_init__(self):
        if self.quality not in range(1, 101):
            raise ValueError(f"quality = {self.quality!r}: expected a whole number from 1 to 100.")

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        with ThreadPoolExecutor() as pool:  # Pillow's encoder lets go of the interpreter lock
            sizes = list(pool.map(self._bytes, to_pil(images)))
        return -torch.tensor(sizes, dtype=torch.float32) / 1000

    def _bytes(self, picture) -> int:
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=self.quality)
        return file.tell()


@dataclass(frozen=True)
class Sharpness(Reward):
    """Mean absolute Laplacian |4 y - up - down - left - right| of the luminance y over interior pixels: [0, 4]."""

    differentiable = True

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        kernel = [[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]]
        return filtered(images, kernel).abs().mean((1, 2, 3))


@dataclass(frozen=True)
class Colour(Reward):
    """Minus the mean squared distance to a colour over all pixels and channels, -mean (x - c)^2: [-1, 0].

    target   a name of `steer.zoo.data.COLOURS` or (red, green, blue) in [0, 1], else ValueError
    """

    target: str | tuple[float, float, float]
    differentiable = True

    def __post_init__(self):
        if isinstance(self.target, str):
            if self.target not in COLOURS:
                raise unknown("colour", self.target, COLOURS, "Or give (red, green, blue) in [0, 1].")
        elif len(self.target) != 3 or not all(0 <= part <= 1 for part in self.target):
            raise ValueError(f"colour {self.target!r}: expected a name or (red, green, blue), each in [0, 1].")

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        rgb = COLOURS[self.target] if isinstance(self.target, str) else self.target
        return -(images - images.new_tensor(rgb)[:, None, None]).square().mean((1, 2, 3))


def filtered(images: Tensor, *kernels: list[list[float]]) -> Tensor:
    """The luminance (Rec. 601) of (b, 3, h, w) under k 3x3 filters, interior pixels only: (b, k, h - 2, w - 2)."""
    if min(images.shape[-2:]) < 3:
        raise ValueError(f"pictures of {tuple(images.shape[-2:])} pixels: a 3x3 filter needs at least 3 x 3.")
    luminance = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    return F.conv2d(luminance, images.new_tensor(kernels)[:, None])
