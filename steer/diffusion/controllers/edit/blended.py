"""Blended-latent inpainting by a network that was not made for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import max_pool2d

from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.controllers.edit.source import one_picture
from steer.diffusion.state import Level, State
from steer.diffusion.trajectory import Trajectory


@dataclass(frozen=True)
class Inpaint(Controller):
    """Repaints the mask and puts the source back everywhere else. See `steer.edit.inpaint`.

    mask    (h, w) of the picture or its latents: 1 where to repaint
    source  one picture's trajectory or its clean latents (1, ...)
    fill    (1, ...) clean latents whose mask the run takes for its own clean estimate up to the fraction `until`
    """

    mask: Tensor = field(repr=False)
    source: Trajectory | Tensor = field(repr=False)
    fill: Tensor | None = field(default=None, repr=False)
    until: float = 0.4

    def __post_init__(self):
        if self.mask.ndim != 2 or not ((self.mask == 0) | (self.mask == 1)).all():
            raise ValueError(
                f"a mask of shape {tuple(self.mask.shape)}, {self.mask.dtype}: expected (h, w) of the picture or its "
                "latents, 1 where to repaint and 0 elsewhere."
            )
        if not 0 <= self.until <= 1:
            raise ValueError(f"{self!r}: expected until in [0, 1], a fraction of the run.")
        one_picture(self._latents, "a source")

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.mask.all() and self.fill is None:
            return denoiser

        def blended(x: Tensor, level: Level, cond: Any) -> Tensor:
            if self.fill is not None and level.progress < self.until:
                return self._blended(_like(self.fill, x))
            if isinstance(self.source, Trajectory):
                x = self._blended(x, self.source.at(level))
            return self._blended(denoiser(x, level, cond))

        return blended

    def look(self, state: State) -> State:
        if not state.finished:
            return state
        x = self._blended(state.x)
        return replace(state, x=x, x0=x)

    @property
    def _latents(self) -> Tensor:
        return self.source.latents if isinstance(self.source, Trajectory) else self.source

    def _blended(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """x (b, ...) in the mask, what is known (1, ...) of the source elsewhere."""
        known = _like(self._latents if known is None else known, x)
        return torch.where(mask_like(self.mask, x).to(x.device), x, known)


def mask_like(mask: Tensor, x: Tensor) -> Tensor:
    """bool, of the shape of one of x: latents (b, c, h, w), or packed (b, tokens, 4 c) as FLUX packs them, 2 x 2.

    A latent that any pixel of the mask (h, w) lies in belongs to it. Raises ValueError for a mask of another shape.
    """
    height, width = mask.shape
    area = math.prod(x.shape[-2:]) if x.ndim == 4 else 4 * x.shape[1]
    factor = max(1, round(math.sqrt(mask.numel() / area)))
    sides = (height // factor, width // factor)
    fits = sides == tuple(x.shape[-2:]) if x.ndim == 4 else math.prod(sides) == area and not sides[0] % 2 | sides[1] % 2
    if x.ndim not in (3, 4) or not fits or (height % factor, width % factor) != (0, 0):
        raise ValueError(
            f"a mask of {height} x {width} for latents {tuple(x.shape[1:])}; expected their height and width (a packed "
            "token is 2 x 2 of them), or those of the picture, which are a whole number of times that."
        )
    pooled = max_pool2d(mask[None, None].float(), factor) > 0
    if x.ndim == 4:
        return pooled
    packed = rearrange(pooled[0, 0], "(h p) (w q) -> (h w) (p q)", p=2, q=2)
    return packed.repeat(1, x.shape[-1] // 4)[None]


def _like(known: Tensor, x: Tensor) -> Tensor:
    if known.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"clean latents {tuple(known.shape)}, where the run has {tuple(x.shape)}: give those of one picture, of "
            "the size of the run, as its pipeline's encoder makes and packs them."
        )
    return known.to(x).expand_as(x)
