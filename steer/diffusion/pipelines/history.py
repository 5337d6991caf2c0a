"""What a scheduler remembers of each particle: read out for a gather and put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from steer.diffusion.pipelines.schedulers import kind_of


def read(scheduler: Any, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors of the latents' shape (P n, ...) that a scheduler holds: `attribute`, or `attribute.place` in a list.

    Raises ValueError if it holds one in an attribute that is not known to: it would be left behind by a gather.
    """
    found = {name: values for name, values in _tensors(scheduler) if tuple(values.shape) == tuple(shape)}
    known = kind_of(scheduler).rows
    strange = sorted({name.partition(".")[0] for name in found} - set(known))
    if strange:
        raise ValueError(
            f"{type(scheduler).__name__} keeps rows of particles in {', '.join(strange)}; expected them only in "
            f"{known or 'no attribute'}. A gather would leave them behind: steer needs an entry for this class."
        )
    return found


def write(scheduler: Any, rows: dict[str, Tensor]) -> None:
    """Put tensors back where `read` found them."""
    for name, values in rows.items():
        attribute, _, place = name.partition(".")
        if place:
            getattr(scheduler, attribute)[int(place)] = values
        else:
            setattr(scheduler, attribute, values)


def _tensors(scheduler: Any) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, list):
            yield from ((f"{name}.{place}", item) for place, item in enumerate(value) if isinstance(item, Tensor))
