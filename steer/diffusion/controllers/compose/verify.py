"""Whether a picture shows what its prompt asks for: questions to a verifier, on the picture and on a closer look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from steer.diffusion.controllers.compose.objectives import Box, Fault, Seen
from steer.diffusion.controllers.compose.words import Constraints


class Verifier(Protocol):
    """(pictures (b, 3, h, w) in [0, 1], texts) -> (b,) scores in [0, 1]: how sure it is that a picture shows its text.

    The texts name entities, with their attributes ("red apple") or without ("apple"). Any reward of that range serves;
    a model that answers questions does as lambda pictures, texts: vqa(pictures, [f"is there a {t}?" for t in texts]).
    """

    def __call__(self, pictures: Tensor, texts: list[str]) -> Tensor: ...


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one picture: every entity's score by its name (coarse) and with its attributes (fine)."""

    coarse: tuple[float, ...]
    fine: tuple[float, ...]

    @property
    def score(self) -> float:
        """The mean of the fine scores, DA-score in arXiv 2503.06506."""
        return sum(self.fine) / len(self.fine)

    def faults(self, threshold: float = 0.5) -> tuple[Fault, ...]:
        """Entities that fail at all, with their attributes where these fail too, and those that fail by these alone.

        If none fails, the one with the lowest fine score.
        """
        found = tuple(
            Fault(k, presence=coarse < threshold, attribute=fine < threshold)
            for k, (coarse, fine) in enumerate(zip(self.coarse, self.fine, strict=True))
            if min(coarse, fine) < threshold
        )
        return found or (Fault(self.fine.index(min(self.fine)), attribute=True),)


def verify(verifier: Verifier, picture: Tensor, constraints: Constraints, boxes: Sequence[Box]) -> Verdict:
    """The verdict on a picture (3, h, w): each score is the mean of that on the picture and that on the entity's box.

    Four scores for each entity, in one call. Raises ValueError for scores of a wrong shape, or that are not finite.
    """
    names = [entity.name.text for entity in constraints.entities]
    texts = [*names, *map(str, constraints.entities)]
    views = torch.stack([view for box in boxes for view in (picture, crop(picture, box))])
    asked = torch.cat([views, views])
    scores = torch.as_tensor(verifier(asked, [text for text in texts for _ in range(2)])).detach().float().cpu()
    if scores.shape != (len(asked),) or not torch.isfinite(scores).all():
        raise ValueError(f"{verifier!r} returned {scores}; expected a finite score for each of {len(asked)} pictures.")
    coarse, fine = scores.view(2, len(names), 2).mean(-1).tolist()
    return Verdict(tuple(coarse), tuple(fine))


def crop(picture: Tensor, box: Box) -> Tensor:
    """A box of a picture (3, h, w), brought to the picture's own size."""
    height, width = picture.shape[-2:]
    left, top, right, bottom = box
    rows = slice(int(top * height), max(int(top * height) + 1, round(bottom * height)))
    columns = slice(int(left * width), max(int(left * width) + 1, round(right * width)))
    return interpolate(picture[None, :, rows, columns], (height, width), mode="bilinear", antialias=True)[0]


def attended(seen: Seen, share: float = 0.1, enlarge: float = 0.2) -> list[Box]:
    """The box around where each entity of a single row is attended to most: the top `share` of its map's places.

    enlarge  by how much of its width and height the box grows, half of it on each side
    """
    maps = seen.entities()[0]
    height, width = maps.shape[-2:]
    found = []
    for one in maps:
        top = one >= one.flatten().topk(max(1, round(share * one.numel()))).values[-1]
        y, x = (top.any(axis).nonzero()[:, 0] for axis in (1, 0))
        spans = ((x.min() / width, (x.max() + 1) / width), (y.min() / height, (y.max() + 1) / height))
        (left, right), (up, down) = (_grown(float(low), float(high), enlarge) for low, high in spans)
        found.append((left, up, right, down))
    return found


def _grown(low: float, high: float, share: float) -> tuple[float, float]:
    more = share * (high - low) / 2
    return max(0.0, low - more), min(1.0, high + more)
