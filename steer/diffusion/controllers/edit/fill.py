"""What goes into a pipeline that was made to fill: a sheet with a reference, and embeddings of task prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SideBySide:
    """A reference at the left, and a right half to fill. See `steer.edit.side_by_side`."""

    reference: Tensor = field(repr=False)

    @property
    def arguments(self) -> dict[str, Any]:
        """What an inpainting pipeline is called with: image, mask_image, height and width."""
        height, width = self.reference.shape[-2:]
        mask = torch.zeros(len(self.reference), 1, height, 2 * width)
        mask[..., width:] = 1
        image = torch.cat([self.reference, torch.full_like(self.reference, 0.5)], -1)
        return {"image": image, "mask_image": mask, "height": height, "width": 2 * width}

    def pasted(self, pictures: Tensor) -> Tensor:
        """Sheets (b, 3, h, 2 w), the left half of which is the reference again, bit for bit."""
        filled = self.filled(pictures)
        repeats = len(filled) // len(self.reference)
        return torch.cat([self.reference.to(filled).repeat_interleave(repeats, 0), filled], -1)

    def filled(self, pictures: Tensor) -> Tensor:
        """(b, 3, h, w) the right halves. Raises ValueError for pictures that are no such sheets."""
        count, _, height, width = self.reference.shape
        if pictures.ndim != 4 or pictures.shape[-2:] != (height, 2 * width) or len(pictures) % count:
            raise ValueError(
                f"pictures {tuple(pictures.shape)}: expected (b, 3, {height}, {2 * width}), b a multiple of {count}."
            )
        return pictures[..., width:]


def side_by_side(reference: Tensor) -> SideBySide:
    """A sheet for a filling pipeline: the reference at the left, and a right half to be filled in its light.

    >>> sheet = side_by_side(reference)
    >>> out = pipe("the same robot, sitting", **sheet.arguments, output_type="pt")       # a FluxFillPipeline
    >>> sheet.filled(out.images), sheet.pasted(out.images)

    This is how ACE++ (arXiv 2501.02487) gives references to FLUX.1 Fill, with whose adapters it goes.

    reference  (r, 3, h, w) in [0, 1]; h and w multiples of 16

    Raises ValueError for anything else.
    """
    fits = reference.ndim == 4 and reference.shape[1] == 3 and not any(side % 16 for side in reference.shape[-2:])
    if not fits or not ((reference >= 0) & (reference <= 1)).all():
        raise ValueError(
            f"a reference {tuple(reference.shape)} from {float(reference.min()):.3g} to {float(reference.max()):.3g}: "
            "expected (r, 3, h, w) in [0, 1], h and w multiples of 16; resize it."
        )
    return SideBySide(reference)


def task_embeds(
    task: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor] | None = None, fit: float = 1.0
) -> dict[str, Tensor]:
    """Prompt embeddings of a task, and those to keep away from, for an inpainting pipeline (arXiv 2312.03594).

        c = f task + (1 - f) other,    on the negative side as on the positive one

    task   (positive, negative) embeddings (b, tokens, d), as `pipe.encode_prompt` makes them. To remove what lies in
           the mask, the positive one fills from the context and the negative one inserts an object, under a guidance
           scale of 10 or more; to insert, both insert an object, the negative one with words for bad quality
    other  what to mix in: for an object that fits its mask by f, `task` fits the shape and `other` the context
    fit    f in [0, 1]; the paper: 0.5 to 0.6 loose, 0.8 to 0.95 tight

    Raises ValueError for an f outside of that, and for embeddings of other shapes.
    """
    other = task if other is None else other
    shapes = [tuple(one.shape) for one in (*task, *other)]
    if not 0 <= fit <= 1 or len(set(shapes)) != 1 or len(shapes) != 4:
        raise ValueError(f"fit = {fit}, embeddings {shapes}: expected fit in [0, 1], and pairs of equal shapes.")
    mixed = [one if fit == 1 else fit * one + (1 - fit) * beside for one, beside in zip(task, other)]
    return dict(zip(("prompt_embeds", "negative_prompt_embeds"), mixed))
