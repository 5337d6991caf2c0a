"""Heat maps over pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import interpolate

from steer.rewards.border import to_pil

if TYPE_CHECKING:
    from PIL.Image import Image


def overlay(image: Image | Tensor, heat: Tensor, opacity: float = 0.65) -> Image:
    """A picture under a heat map: bright where the heat is large, dark where it is small.

        opacity * colour((heat - min) / (max - min)) + (1 - opacity) * gray(picture)

    image  PIL picture or float tensor (3, h, w) in [0, 1]
    heat   (rows, columns) of any size, stretched over the picture; even heat is all dark

    Raises ValueError for heat of another shape or that is not finite, and unless 0 <= opacity <= 1.
    """
    import numpy as np
    from matplotlib import colormaps
    from PIL import Image

    if heat.ndim != 2 or not heat.isfinite().all():
        raise ValueError(f"overlay: heat has shape {tuple(heat.shape)}; expected finite values (rows, columns).")
    if not 0 <= opacity <= 1:
        raise ValueError(f"overlay: opacity = {opacity}; expected 0 <= opacity <= 1.")
    picture = to_pil(image[None])[0] if isinstance(image, Tensor) else image
    heat = heat.detach().float().cpu()
    shares = (heat - heat.min()) / (heat.max() - heat.min()).clamp_min(1e-12)
    full = interpolate(shares[None, None], (picture.height, picture.width), mode="bicubic")[0, 0].clamp(0, 1)
    colours = colormaps["inferno"](full.numpy())[..., :3]
    gray = np.asarray(picture.convert("L"), dtype=np.float32)[..., None] / 255
    mixed = opacity * colours + (1 - opacity) * gray
    return Image.fromarray((255 * mixed).round().astype(np.uint8))
