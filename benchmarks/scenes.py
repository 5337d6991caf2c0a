"""Two-object prompts of the emoji world, and what is in their pictures, by a scorer that names halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from steer.diffusion.controllers.compose import parse
from steer.diffusion.controllers.compose.verify import crop
from steer.measure import name_rank
from steer.rewards import ClipScore, Reward
from steer.zoo.data import STYLES, captions, held_out_pair, scene_caption

NAMES = tuple(row["name"] for row in captions())
LEFT, RIGHT = (0.0, 0.25, 0.5, 0.75), (0.5, 0.25, 1.0, 0.75)
"""Where the scenes of the training set have their objects."""
TOP = 5
read = partial(parse, names=NAMES)


@dataclass(frozen=True)
class Scene:
    """`a` and `b` in one picture."""

    a: str
    relation: str
    b: str
    style: str

    @property
    def prompt(self) -> str:
        return scene_caption(self.a, self.relation, self.b, self.style)


def scenes(count: int, relation: str, held_out: bool = True, seed: int = 0) -> list[Scene]:
    """Scenes of pairs that were never trained on together, or of pairs that were; always the same ones."""
    generator, found = torch.Generator().manual_seed(seed), []
    while len(found) < count:
        a, b = (NAMES[k] for k in torch.randperm(len(NAMES), generator=generator)[:2])
        if held_out_pair(a, b) == held_out:
            found.append(Scene(a, relation, b, STYLES[len(found) % len(STYLES)]))
    return found


def ranks(pictures: Tensor, asked: Sequence[Scene], scorer: Reward | None = None) -> Tensor:
    """(scenes, k, 2, 2) of pictures (scenes, k, 3, h, w): [half, object] rank among all names, 0 the best.

    scorer  None: the judge
    """
    k = pictures.shape[1]
    views = torch.stack([crop(picture, box) for picture in pictures.flatten(0, 1) for box in (LEFT, RIGHT)])
    found = []
    for names in ([scene.a for scene in asked], [scene.b for scene in asked]):
        found.append(name_rank(views, [name for name in names for _ in range(2 * k)], NAMES, scorer))
    return torch.stack(found, -1).view(len(asked), k, 2, 2)


def both_present(found: Tensor) -> Tensor:
    """(scenes, k) 1 where each object is among the first five names of a half of its own."""
    seen = found < TOP
    return ((seen[..., 0, 0] & seen[..., 1, 1]) | (seen[..., 0, 1] & seen[..., 1, 0])).double()


def in_order(found: Tensor) -> Tensor:
    """(scenes, k) 1 where a is on the left and b on the right."""
    seen = found < TOP
    return (seen[..., 0, 0] & seen[..., 1, 1]).double()


@dataclass(frozen=True)
class Namer:
    """A verifier: 1 / (1 + rank / 5) of the text among all names by emoji-clip, 1/2 where the fifth place is missed."""

    @torch.no_grad()
    def __call__(self, pictures: Tensor, texts: list[str]) -> Tensor:
        return 1 / (1 + name_rank(pictures, texts, NAMES, ClipScore()) / TOP)


def nearness(found: Tensor) -> Tensor:
    """(scenes, k) mean of the objects' `Namer` scores under the best assignment: `both_present` made smooth."""
    near = 1 / (1 + found / TOP)
    straight, crossed = near[..., 0, 0] + near[..., 1, 1], near[..., 0, 1] + near[..., 1, 0]
    return (torch.maximum(straight, crossed) / 2).double()
