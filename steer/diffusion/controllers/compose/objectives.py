"""What a run is to satisfy: losses of the maps of a prompt's own words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.diffusion.controllers.compose import losses
from steer.diffusion.controllers.compose.tokens import Stream
from steer.diffusion.controllers.compose.words import Constraints, Phrase, Relation

Box = tuple[float, float, float, float]
"""left, top, right, bottom in fractions of the picture."""


@dataclass(frozen=True)
class Seen:
    """The maps (rows, tokens, h, w) of all tokens of the text, for the rows of one image, and what its prompt asks for.

    image    the image's number in the run
    padding  whether shares of attention are among all tokens but the first and last, or the prompt's own words alone
    """

    maps: Tensor
    constraints: Constraints
    streams: tuple[Stream, ...]
    image: int = 0
    padding: bool = True

    def of(self, phrases: Sequence[Phrase], factor: float = 100.0, blurred: bool = False) -> Tensor:
        """(rows, phrases, h, w) shares of attention: token softmax, mean over a phrase's tokens, then over streams."""
        found = torch.stack([self._within(stream, phrases, factor) for stream in self.streams]).mean(0)
        return losses.blur(found) if blurred else found

    def entities(self, factor: float = 100.0, blurred: bool = False) -> Tensor:
        """(rows, entities, h, w)"""
        return self.of([entity.name for entity in self.constraints.entities], factor, blurred)

    def nothing(self) -> Tensor:
        """(rows,) zeros with a graph."""
        return 0 * self.maps.flatten(1).sum(1)

    def _within(self, stream: Stream, phrases: Sequence[Phrase], factor: float) -> Tensor:
        prompt = self.constraints.prompt
        kept, places = stream.kept(prompt, self.padding), [stream.positions(prompt, phrase) for phrase in phrases]
        shares = losses.token_softmax(self.maps[:, kept], factor)
        return torch.stack([shares[:, [p - kept.start for p in place]].mean(1) for place in places], 1)


Loss = Callable[[Seen], Tensor]
"""Seen -> (rows,), lower is better; each row's its own."""


@dataclass(frozen=True)
class Excite:
    """Every entity has a place where it is attended to: `losses.excite` (arXiv 2301.13826)."""

    factor: float = 100.0

    def __call__(self, seen: Seen) -> Tensor:
        return losses.excite(seen.entities(self.factor, blurred=True))


@dataclass(frozen=True)
class Separate:
    """Every entity has a place, and a place of its own: `losses.separate` (arXiv 2508.13866)."""

    factor: float = 100.0

    def __call__(self, seen: Seen) -> Tensor:
        return losses.separate(seen.entities(self.factor, blurred=True))


@dataclass(frozen=True)
class InBoxes:
    """Entities fill their boxes: `losses.retention`.

    boxes  pairs of a name and its box; of a name that the prompt holds twice the first is meant first. Other entities
           are free

    Raises ValueError for a name that is no entity of the prompt, and for a box that `losses.box_masks` refuses.
    """

    boxes: tuple[tuple[str, Box], ...]
    factor: float = 100.0

    def __call__(self, seen: Seen) -> Tensor:
        maps, left = seen.entities(self.factor, blurred=True), list(enumerate(seen.constraints.entities))
        chosen = []
        for name, _ in self.boxes:
            place = next((k for k, e in left if name.lower() in (e.name.text.lower(), str(e).lower())), None)
            if place is None:
                known = [str(entity) for entity in seen.constraints.entities]
                raise ValueError(f"a box for {name!r}, but the entities of {seen.constraints.prompt!r} are {known}.")
            left = [(k, entity) for k, entity in left if k != place]
            chosen.append(place)
        masks = losses.box_masks([box for _, box in self.boxes], *maps.shape[-2:])
        return losses.retention(maps[:, chosen], masks)


TERMS = ("mixing", "missing", "attribute", "spatial")


@dataclass(frozen=True)
class Align:
    """The unified losses of arXiv 2503.06506: missing + attribute + mixing, or + spatial where the prompt says where.

    terms   those of `TERMS` that count
    factor  of the token softmax; `spatial` takes its maps at 100, as the paper's code does

    Raises ValueError for an unknown term.
    """

    terms: tuple[str, ...] = TERMS
    factor: float = 1.0

    def __post_init__(self):
        if not self.terms or set(self.terms) - set(TERMS):
            raise ValueError(f"terms = {self.terms}: expected some of {TERMS}.")

    def __call__(self, seen: Seen) -> Tensor:
        total, names, relations = seen.nothing(), seen.entities(self.factor), seen.constraints.spatial
        if "missing" in self.terms:
            total = total + losses.missing(names)
        if "attribute" in self.terms:
            total = total + attribute(seen, range(len(seen.constraints.entities)), self.factor)
        if "spatial" in self.terms and relations:
            total = total + spatial(seen, relations)
        elif "mixing" in self.terms:
            total = total + losses.mixing(names)
        return total


@dataclass(frozen=True)
class Fault:
    """What is wrong with entity number `entity`: it is not there, or it is not as its attributes say."""

    entity: int
    presence: bool = True
    attribute: bool = False


@dataclass(frozen=True)
class Repair:
    """The losses of arXiv 2503.06506, stage 2, of fault number `turn` of each image; earlier ones count as repaired.

    presence   max(0, 1 - g / m) + sum of ov over the m good entities, g as in `losses.gaps` at factor 100, or
               1 - max A if none is good; and the entity's relations
    attribute  1 - ov of it and each of its attributes

    An image with fewer faults has none.
    """

    faults: tuple[tuple[Fault, ...], ...]
    turn: int = 0
    factor: float = 1.0

    def __call__(self, seen: Seen) -> Tensor:
        total, left = seen.nothing(), self.faults[seen.image][self.turn :]
        if not left:
            return total
        fault = left[0]
        if fault.presence:
            total = total + self._present(seen, fault.entity, {other.entity for other in left if other.presence})
        if fault.attribute:
            total = total + attribute(seen, [fault.entity], self.factor)
        return total

    def _present(self, seen: Seen, entity: int, bad: set[int]) -> Tensor:
        names = seen.entities(self.factor)
        own, good = names[:, [entity]], [k for k in range(names.shape[1]) if k not in bad]
        if good:
            g = losses.gaps(own, names[:, good], factor=100.0)[:, 0]
            total = (1 - g / len(good)).clamp_min(0) + losses.overlap(own, names[:, good]).sum(1)
        else:
            total = 1 - losses.peaks(own)[:, 0]
        relations = [r for r in seen.constraints.spatial if entity in (r.one, r.other)]
        return total + spatial(seen, relations) if relations else total


def attribute(seen: Seen, entities: Sequence[int], factor: float) -> Tensor:
    """(rows,) `losses.attribute` of these entities and their attributes."""
    pairs = [(word, entity.name) for entity in map(seen.constraints.entities.__getitem__, entities)
             for word in entity.attributes]  # fmt: skip
    if not pairs:
        return seen.nothing()
    words, names = (seen.of(phrases, factor) for phrases in zip(*pairs, strict=True))
    return losses.attribute(words, names)


def spatial(seen: Seen, relations: Sequence[Relation]) -> Tensor:
    """(rows,) `losses.spatial` of these relations."""
    return losses.spatial(seen.entities(100.0), [(r.kind, r.one, r.other) for r in relations])
