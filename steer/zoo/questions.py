"""What emoji-vlm is asked, and held-out pictures to ask it about.

Grammar of the questions, with the captions of `steer.zoo.data`:

    What is this?                       -> <name>, <style> style | a <colour> <name>, ... | <A> above <B>, ...
    Is there a <name> in the picture?   -> Yes | No
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from steer.zoo.data import (
    RELATIONS,
    STYLES,
    caption,
    captions,
    compose,
    glyphs,
    held_out_pair,
    rgba,
    scene,
    scene_caption,
    split,
)

DESCRIBE, YES, NO = "What is this?", "Yes", "No"


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture (3, 64, 64) in [0, 1], the one or two names in it, and the right answer to `DESCRIBE`."""

    picture: Tensor
    names: tuple[str, ...]
    caption: str


def presence(name: str) -> str:
    """The question whether the picture shows it."""
    return f"Is there {'an' if name[0] in 'aeiou' else 'a'} {name} in the picture?"


def absent(shown: Sequence[str], near: bool, generator: Generator) -> str:
    """A name that is not among those shown; with `near` one of the group of the first, as another animal is."""
    groups = grouped()
    candidates = [name for name, group in groups.items() if not near or group == groups[shown[0]]]
    candidates = [name for name in candidates if name not in shown]
    return candidates[int(torch.randint(len(candidates), (), generator=generator))]


@functools.cache
def grouped() -> dict[str, str]:
    """Name -> its group in Unicode's list of emoji."""
    return {row["name"]: row["group"] for row in captions()}


def told(answer: str) -> set[str]:
    """The names in an answer to `DESCRIBE`: what stands before the style, on both sides of the relation."""
    head = answer.split(",")[0]
    for relation in RELATIONS:
        head = head.replace(f" {relation} ", "|")
    return {part.strip() for part in head.split("|")}


def held_out(kind: Literal["glyphs", "pairs", "seen"], count: int, seed: int = 0) -> list[Shown]:
    """`count` pictures on white: "glyphs" that no model was trained on, scenes of names never shown together ("pairs",
    both glyphs known), or, to compare with, single glyphs of the training set ("seen").

    Raises ValueError for another kind, and for more pictures of a kind than there are.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "pairs":
        return [_pair(generator) for _ in range(count)]
    if kind not in ("glyphs", "seen"):
        raise ValueError(f"kind {kind!r}: expected 'glyphs', 'pairs' or 'seen'.")
    pictures, names, styles = glyphs()
    every = (split() if kind == "seen" else ~split()).nonzero()
    if count > len(every):
        raise ValueError(f"{count} pictures of the kind {kind!r}: there are {len(every)}.")
    which = every[torch.randperm(len(every), generator=generator)[:count]].tolist()
    return [Shown(compose(pictures[s, n]), (names[n],), caption(names[n], styles[s])) for s, n in which]


def _pair(generator: Generator) -> Shown:
    pictures, names, _ = glyphs()
    style, relation = (int(torch.randint(n, (), generator=generator)) for n in (len(STYLES), len(RELATIONS)))
    while True:
        a, b = torch.randint(len(names), (2,), generator=generator).tolist()
        if a != b and split()[style, a] and split()[style, b] and held_out_pair(names[a], names[b]):
            break
    picture = scene(rgba(pictures[style, a]), rgba(pictures[style, b]), RELATIONS[relation])
    text = scene_caption(names[a], RELATIONS[relation], names[b], STYLES[style])
    return Shown(picture, (names[a], names[b]), text)
