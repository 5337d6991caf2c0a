"""Prompt sets: names, and two kinds of prompts that nothing was trained on."""

from __future__ import annotations

from steer.rewards.border import unknown
from steer.zoo.data import (
    COLOURS,
    RELATIONS,
    STYLES,
    caption,
    captions,
    held_out_colour,
    held_out_pair,
    scene_caption,
)


def _names() -> list[str]:
    return [caption(row["name"], article=k % 2 == 0) for k, row in enumerate(captions())]


def _colours() -> list[str]:
    names = [row["name"] for row in captions()]
    return [caption(name, colour=c) for name in names for c in COLOURS if held_out_colour(c, name)]


def _pairs() -> list[str]:
    names = [row["name"] for row in captions()]
    held = [(a, b) for k, a in enumerate(names) for b in names[k + 1 :] if held_out_pair(a, b)]
    return [scene_caption(a, RELATIONS[k % 3], b, STYLES[k % 4]) for k, (a, b) in enumerate(held)]


SETS = {"names": _names, "held-out-colours": _colours, "held-out-pairs": _pairs}


def prompts_of(which: str, count: int) -> list[str]:
    """`count` prompts spread evenly over a set: names, held-out-colours or held-out-pairs, without or with a style.

    Raises ValueError for an unknown set, and unless 2 <= count <= its size.
    """
    if which not in SETS:
        raise unknown("prompt set", which, SETS)
    every = SETS[which]()
    if not 2 <= count <= len(every):
        raise ValueError(f"{count} prompts of {which!r}: expected 2 to {len(every)}.")
    return [every[k * (len(every) - 1) // (count - 1)] for k in range(count)]
