"""Pictures that a pipeline is given: every particle of an image works from the one that the plain call gives it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rows_of(call: dict[str, Any]) -> int:
    """Rows that a `prepare_latents` is asked for."""
    return call["batch_size"] * call.get("num_images_per_prompt", 1)


def index(count: int, rows: int, n: int) -> Tensor:
    """(rows,) which of `count` references each row works from: the plain call takes them in turn, image by image.

    Raises ValueError for a number that does not divide the number of images.
    """
    images = rows // n
    if images % count:
        raise ValueError(
            f"{count} references for {images} images; expected one, or one for each image (or a number that divides "
            "theirs: the pipeline takes the references in turn)."
        )
    return torch.arange(rows) // n % count


def spread(repeated: Tensor, count: int, rows: int, n: int) -> Tensor:
    """Blocks of `rows` rows, to which the pipeline has dealt `count` references in turn, dealt by `index` instead."""
    return repeated.unflatten(0, (-1, rows))[:, index(count, rows, n).to(repeated.device)].flatten(0, 1)
