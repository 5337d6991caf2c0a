"""The size of a JPEG file as a smooth function of the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.rewards.base import Reward

# ISO/IEC 10918-1, tables K.1 (luminance) and K.2 (chrominance)
LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
CHROMINANCE = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""
YCBCR = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
BLOCK = 8


@dataclass(frozen=True)
class SmoothCompressibility(Reward):
    """Minus an estimate of the picture's size as a JPEG file, in kilobytes: - sum log2(1 + |c| / q) / 8000.

    c are the coefficients of the 8 x 8 cosine transform of luminance, and of colour at half the size, q the table of
    this quality. A stand-in with a gradient for `Compressibility`, which is what its gain must be checked by. Sides
    that 16 does not divide are filled up with their last pixels.
    """

    quality: int = 75
    differentiable = True

    def __post_init__(self):
        if self.quality not in range(1, 101):
            raise ValueError(f"quality = {self.quality!r}: expected a whole number from 1 to 100.")

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        height, width = images.shape[-2:]
        side = 2 * BLOCK
        whole = F.pad(images, (0, -width % side, 0, -height % side), mode="replicate")
        colours = 255 * torch.einsum("kc,bchw->bkhw", images.new_tensor(YCBCR), whole)
        luminance = colours[:, :1] - 128
        half = F.avg_pool2d(colours[:, 1:], 2)
        return -(self._bits(luminance, LUMINANCE) + self._bits(half, CHROMINANCE)) / 8000

    def _bits(self, planes: Tensor, table: str) -> Tensor:
        """(b,) of planes (b, k, h, w)."""
        basis = _cosines().to(planes)
        blocks = planes.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)
        found = torch.einsum("ui,bkyxij,vj->bkyxuv", basis, blocks, basis)
        steps = planes.new_tensor([int(step) for step in table.split()]).reshape(BLOCK, BLOCK)
        scale = 5000 / self.quality if self.quality < 50 else 200 - 2 * self.quality
        steps = ((steps * scale + 50) / 100).floor().clamp(1, 255)
        return torch.log2(1 + found.abs() / steps).flatten(1).sum(1)


def _cosines() -> Tensor:
    """The orthonormal cosine transform of 8 numbers, (frequency, place)."""
    u, i = torch.arange(BLOCK, dtype=torch.float64)[:, None], torch.arange(BLOCK, dtype=torch.float64)
    basis = math.sqrt(2 / BLOCK) * torch.cos((2 * i + 1) * u * math.pi / (2 * BLOCK))
    basis[0] /= math.sqrt(2)
    return basis
