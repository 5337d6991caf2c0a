"""A reference picture as part of a reward's configuration: it prints as its size and hash, and compares by content."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from steer.rewards.border import checked, to_tensor


@dataclass(frozen=True)
class Picture:
    """One picture, `pixels` float (1, 3, h, w) in [0, 1]; equal and hashed by `name`, which holds its hash."""

    name: str
    pixels: Tensor = field(repr=False, compare=False)

    def at(self, images: Tensor) -> Tensor:
        """The pixels on the device and at the size of `images`, antialiased."""
        pixels = self.pixels.to(images.device)
        return resized(pixels, images.shape[-2:])


def picture(given: object) -> Picture:
    """A `Picture` from a tensor (3, h, w) or (1, 3, h, w) in [0, 1], a PIL image, a path, or a Picture.

    Raises ValueError for anything else and for a path that is no picture.
    """
    if isinstance(given, Picture):
        return given
    if isinstance(given, str | os.PathLike):
        given = _opened(Path(given))
    if isinstance(given, Tensor) and given.dim() == 4 and len(given) == 1:
        given = given[0]
    pixels, _ = checked(to_tensor([given]).detach().cpu(), [""])
    digest = blake2b(pixels.contiguous().numpy().tobytes(), digest_size=4).hexdigest()
    return Picture(f"{pixels.shape[3]}x{pixels.shape[2]} {digest}", pixels)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures at (h, w), antialiased; differentiable, and untouched where they have that size."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, tuple(size), mode="bilinear", antialias=True)


def _opened(path: Path):
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
