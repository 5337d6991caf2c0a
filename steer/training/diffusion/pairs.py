"""Real pictures with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from steer.diffusion.pipelines.families import family_of
from steer.diffusion.pipelines.family import encoded

ENCODED = 16  # pictures in one call of the encoder


@dataclass(frozen=True)
class Pairs:
    """Clean latents (m, ...) of real pictures, and a caption of each. Raises ValueError for other numbers of them."""

    latents: Tensor = field(repr=False)
    captions: tuple[str, ...]

    def __post_init__(self):
        if len(self.latents) != len(self.captions) or not self.captions:
            raise ValueError(f"{len(self.latents)} pictures with {len(self.captions)} captions: expected one each.")

    @classmethod
    @torch.no_grad()
    def of(cls, pipe: Any, pictures: Tensor, captions: Sequence[str]) -> Pairs:
        """Pictures (m, 3, h, w), float in [0, 1], through the encoder of a pipeline."""
        parts = [encoded(pipe, family_of(pipe), part) for part in pictures.split(ENCODED)]
        return cls(torch.cat(parts), tuple(captions))

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """`count` places, with replacement, and the latents there."""
        index = torch.randint(len(self.captions), (count,), generator=generator)
        return index, self.latents[index]
