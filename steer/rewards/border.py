"""Checks where pictures, texts, prompts and names come in from outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

SLACK = 1e-3  # decoders overshoot [0, 1] by rounding


def checked(images: Any, prompts: Sequence[str], medium: str = "pictures") -> tuple[Any, list[str]]:
    """Images as float32 and prompts as a list, or a ValueError that says what to do.

    Of the medium "pictures" they must be (b, 3, h, w) in [0, 1] up to rounding; NaN passes and makes a NaN score. Of
    "latents" any (b, ...) does. Of "texts" they are strings, and come back as a list.
    """
    if medium == "texts":
        return _texts(images, prompts)
    pictures = medium == "pictures"
    if not isinstance(images, Tensor):
        raise ValueError(
            f"images are a {type(images).__name__}; expected a tensor (b, 3, h, w): use to_tensor(images)."
        )
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the bare string {prompts!r}; expected a list with one string for each picture.")
    if pictures and (images.dim() != 4 or images.shape[1] != 3):
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (b, 3, h, w): RGB pictures in a batch.")
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; expected floats in [0, 1]: use images.float() / 255 for bytes.")
    if len(prompts) != len(images):
        raise ValueError(f"{len(images)} pictures came with {len(prompts)} prompts; expected one prompt a picture.")
    if pictures and bool(((images < -SLACK) | (images > 1 + SLACK)).any()):
        seen = images.detach().nan_to_num()
        raise ValueError(
            f"images range from {float(seen.min()):.3g} to {float(seen.max()):.3g}; expected [0, 1]: "
            "use (images + 1) / 2 for pictures in [-1, 1], and clamp what a decoder overshoots."
        )
    return images.float(), list(prompts)


def _texts(texts: Any, prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    for name, given in (("texts", texts), ("prompts", prompts)):
        if isinstance(given, str | Tensor) or not all(isinstance(text, str) for text in given):
            raise ValueError(f"{name} are {given!r:.80}; expected a list of strings.")
    if len(texts) != len(prompts):
        raise ValueError(f"{len(texts)} texts came with {len(prompts)} prompts; expected one prompt a text.")
    return list(texts), list(prompts)


def to_tensor(pictures: Iterable[object]) -> Tensor:
    """PIL pictures or (3, h, w) tensors of one size -> float (b, 3, h, w) in [0, 1]. Raises ValueError otherwise."""
    from PIL.Image import Image
    from torchvision.transforms.functional import pil_to_tensor

    found = []
    for picture in pictures:
        if isinstance(picture, Image):
            picture = pil_to_tensor(picture.convert("RGB")).float() / 255
        if not isinstance(picture, Tensor):
            raise ValueError(f"a picture is a {type(picture).__name__}; expected a PIL image or a tensor (3, h, w).")
        found.append(picture)
    sizes = sorted({tuple(picture.shape) for picture in found})
    if len(sizes) != 1:
        raise ValueError(f"pictures of shapes {sizes}; expected at least one, all of one size: resize them first.")
    return torch.stack(found)


def to_pil(images: Tensor) -> list:
    """Float (b, 3, h, w) in [0, 1] -> PIL pictures, rounded to bytes; NaN becomes black."""
    from PIL import Image

    bytes_ = (images.detach().nan_to_num(0).clamp(0, 1) * 255).round().byte()
    return [Image.fromarray(picture) for picture in bytes_.permute(0, 2, 3, 1).cpu().numpy()]


def unknown(what: str, name: object, known: Iterable[str], cure: str = "") -> ValueError:
    """The error for a name that is none of `known`, with the closest ones."""
    known = [str(k) for k in known]
    near = get_close_matches(str(name), known)
    guess = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ValueError(f"unknown {what} {name!r}: expected one of {', '.join(known)}.{guess}{cure and ' ' + cure}")
