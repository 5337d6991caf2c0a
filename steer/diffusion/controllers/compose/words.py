"""What a prompt asks for: entities, their attributes and where they are, as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

KINDS = ("left of", "right of", "above", "below", "and")
"""Relations of two entities; all but "and" say where they are."""


@dataclass(frozen=True)
class Phrase:
    """A piece of a prompt: `text`, from character `at` on."""

    text: str
    at: int

    @property
    def stop(self) -> int:
        return self.at + len(self.text)


@dataclass(frozen=True)
class Entity:
    """A thing, by the words that name it, and the words that say what it is like."""

    name: Phrase
    attributes: tuple[Phrase, ...] = ()

    def __str__(self) -> str:
        return " ".join(phrase.text for phrase in (*self.attributes, self.name))


@dataclass(frozen=True)
class Relation:
    """Entity number `one` is `kind` entity number `other`; kind is one of `KINDS`."""

    kind: str
    one: int
    other: int


@dataclass(frozen=True)
class Constraints:
    """All that a prompt asks for.

    Raises ValueError without an entity, for a phrase that does not stand in the prompt where it says, and for a
    relation of an unknown kind, of an entity to itself, or of entities that there are not.
    """

    prompt: str
    entities: tuple[Entity, ...]
    relations: tuple[Relation, ...] = ()

    def __post_init__(self):
        if not self.entities:
            raise ValueError(
                f"no entity was found in the prompt {self.prompt!r}; name at least one thing, pass the names that may "
                "occur (parse(prompt, names)), or a `parse` of your own."
            )
        for phrase in (p for entity in self.entities for p in (entity.name, *entity.attributes)):
            if not phrase.text or self.prompt[phrase.at : phrase.stop] != phrase.text:
                raise ValueError(f"{phrase} does not stand there in the prompt {self.prompt!r}.")
        for relation in self.relations:
            known = {relation.one, relation.other} <= set(range(len(self.entities)))
            if relation.kind not in KINDS or relation.one == relation.other or not known:
                raise ValueError(
                    f"{relation} among {len(self.entities)} entities: expected a kind of {KINDS}, and two of them."
                )

    @property
    def spatial(self) -> tuple[Relation, ...]:
        """The relations that say where things are."""
        return tuple(relation for relation in self.relations if relation.kind != "and")


Parse = Callable[[str], Constraints]
"""Prompt -> what it asks for; `grammar.parse`, or anything that knows better, such as an LLM."""


def constraints(
    prompt: str, entities: Mapping[str, Sequence[str]] | Sequence[str], relations: Sequence[tuple[str, str, str]] = ()
) -> Constraints:
    """Constraints from names: the way in for an LLM's answer, or for one's own.

    >>> constraints("a red apple above a house", {"apple": ["red"], "house": []}, [("apple", "above", "house")])

    An attribute is looked for before its entity first (the nearest), then after it. Letter case does not matter. Raises
    ValueError for words that the prompt does not hold, and as `Constraints` does.
    """
    wanted = entities if isinstance(entities, Mapping) else {name: () for name in entities}
    names = list(wanted)
    found = []
    for name, attributes in wanted.items():
        own = _places(prompt, name)[0]
        found.append(Entity(own, tuple(_near(prompt, attribute, own.at) for attribute in attributes)))
    places = {name: place for place, name in enumerate(names)}
    if strange := {name for one, _, other in relations for name in (one, other)} - set(names):
        raise ValueError(f"relations of {sorted(strange)}, which are none of the entities {names}.")
    links = tuple(Relation(kind, places[one], places[other]) for one, kind, other in relations)
    return Constraints(prompt, tuple(found), links)


def _places(prompt: str, text: str) -> list[Phrase]:
    """Every place where a prompt holds some words, as words. Raises ValueError if there is none."""
    pattern = rf"(?<!\w){re.escape(text)}(?!\w)"
    found = [Phrase(match.group(), match.start()) for match in re.finditer(pattern, prompt, re.I)] if text else []
    if not found:
        raise ValueError(f"{text!r} does not occur in the prompt {prompt!r}.")
    return found


def _near(prompt: str, text: str, at: int) -> Phrase:
    places = _places(prompt, text)
    before = [phrase for phrase in places if phrase.at < at]
    return before[-1] if before else places[0]
