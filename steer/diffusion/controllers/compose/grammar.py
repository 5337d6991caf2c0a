"""A rule-based reader of prompts: noun phrases, adjectives before them or after "is", and where things are."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from steer.diffusion.controllers.compose.words import Constraints, Entity, Phrase, Relation


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ADJECTIVES = _words(
    """red orange yellow green blue purple pink brown gray grey black white golden gold silver violet turquoise teal
    cyan magenta beige maroon crimson navy tan bronze dark light bright pale colorful colourful transparent
    big small large little tiny huge giant tall short long thin thick wide narrow high low tiny
    round square rectangular triangular circular oval spherical conical cubic pyramidal cylindrical curved flat sharp
    wooden metallic metal glass plastic rubber leather fabric fluffy furry stone paper ceramic concrete
    old new young ancient modern hot cold wet dry shiny soft hard smooth rough empty full open closed
    happy sad angry cute beautiful pretty ugly broken wild clean dirty fresh sweet heavy striped spotted"""
)
ARTICLES = _words("a an the one two three four five some this that these those his her its their my your")
VERBS = _words(
    """is are was were has have sits stands lies wears holds rides sitting standing lying wearing holding riding eating
    looking walking running flying playing swimming hanging floating growing facing placed"""
)
BETWEEN = _words(
    """with in on at near by beside behind inside into onto from to of around over for against through along between
    front next side while who which where there very"""
)
NOTHING = _words(
    """style background photo photograph picture image painting drawing illustration sketch render rendering portrait
    view scene close-up"""
)
"""What a picture is, or how it is made: no thing in it."""
RELATIONS = (
    ("left of", r"(?:(?:to|on|at) )?(?:the )?left(?: hand)?(?: side)? of"),
    ("right of", r"(?:(?:to|on|at) )?(?:the )?right(?: hand)?(?: side)? of"),
    ("above", r"(?:directly )?above|(?:on|at) (?:the )?top of"),
    ("below", r"(?:directly )?below|under(?:neath)?|beneath|(?:on|at) (?:the )?bottom of"),
    ("and", r"and|&"),
)


def parse(prompt: str, names: Iterable[str] = ()) -> Constraints:
    """What a prompt asks for, by rules.

    A noun phrase is an entity: its last word and those before it that are no known adjectives are the name, adjectives
    (a list of colours, sizes, shapes, materials; words in -ed; compounds such as "dark-blue") the attributes, as is an
    adjective after "is". Relations link the entities on both sides of "left of", "above", "and" ... With `names`, such
    as those of `steer.zoo.data.captions()`, these are the only entities, the longest first: "hot dog" is one then, and
    not a dog that is hot. Letter case does not matter.

    Raises ValueError for an empty prompt, and for one without an entity.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty, so it names no entity; pass a prompt that names at least one.")
    reader = _Reader(prompt, known=bool(names := tuple(names)))
    for match in _pattern(names).finditer(prompt):
        kind, text = match.lastgroup or "", match.group()
        phrase = Phrase(text, match.start())
        if kind == "name":
            reader.name(phrase)
        elif kind == "word":
            reader.word(phrase)
        elif kind in ("mark", "style"):
            reader.close(comma=True)
        else:
            reader.relate(RELATIONS[int(kind.removeprefix("relation"))][0])
    reader.close()
    return Constraints(prompt, tuple(reader.entities), tuple(reader.relations))


@functools.lru_cache(maxsize=64)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    longest = sorted((re.escape(name) for name in names), key=len, reverse=True)
    kinds = [r"(?P<style>in the style of [^,.;]*)"]
    kinds += [f"(?P<name>{'|'.join(longest)})"] if longest else []
    kinds += [f"(?P<relation{k}>{words})" for k, (_, words) in enumerate(RELATIONS)]
    kinds += [r"(?P<word>\w+(?:['’-]\w+)*)"]
    whole = "|".join(rf"(?<![\w-]){kind}(?![\w-])" for kind in kinds)
    return re.compile(rf"{whole}|(?P<mark>[^\w\s])", re.I)


class _Reader:
    """Takes a prompt's pieces one after the other; `close` ends a noun phrase."""

    def __init__(self, prompt: str, known: bool):
        self.prompt, self.known = prompt, known
        self.entities: list[Entity] = []
        self.relations: list[Relation] = []
        self.words: list[Phrase] = []
        self.link: tuple[str, int] | None = None
        self.told = False  # an "is" came last

    def word(self, phrase: Phrase) -> None:
        word = phrase.text.lower()
        if word in ARTICLES or word in BETWEEN:
            self.close()
        elif word in VERBS and (self.words or word in ("is", "are")):
            self.close()
            self.told = word in ("is", "are", "was", "were")
        else:
            self.words.append(phrase)

    def name(self, phrase: Phrase) -> None:
        """A name of the vocabulary, with the adjectives right before it."""
        before = []
        while self.words and _is_adjective(self.words[-1].text):
            before.append(self.words.pop())
        self._add(Entity(phrase, tuple(reversed(before))))
        self.words = []

    def relate(self, kind: str) -> None:
        if kind == "and" and not self.told and self.words and all(_is_adjective(w.text) for w in self.words):
            return  # "red and black cat"
        self.close()
        if self.entities:
            self.link = (kind, len(self.entities) - 1)

    def close(self, comma: bool = False) -> None:
        """The noun phrase so far becomes an entity, or what the last one is told to be like."""
        words, told = self.words, self.told
        self.words, self.told = [], self.told and not (words or comma)
        if not words:
            return
        rest = [phrase for phrase in words if not _is_adjective(phrase.text)]
        if told and not rest and self.entities:
            last = self.entities[-1]
            self.entities[-1] = Entity(last.name, (*last.attributes, *words))
        elif not self.known:
            self._noun_phrase(words)

    def _noun_phrase(self, words: list[Phrase]) -> None:
        if words[-1].text.lower() in NOTHING:
            return
        first = next((k for k, w in enumerate(words) if not _is_adjective(w.text)), len(words) - 1)
        head, last = words[first], words[-1]
        self._add(Entity(Phrase(self.prompt[head.at : last.stop], head.at), tuple(words[:first])))

    def _add(self, entity: Entity) -> None:
        self.entities.append(entity)
        if self.link is not None:
            kind, one = self.link
            self.relations.append(Relation(kind, one, len(self.entities) - 1))
        self.link, self.told = None, False


def _is_adjective(word: str) -> bool:
    *_, last = word.lower().split("-")
    return last in ADJECTIVES or (last.endswith("ed") and len(last) > 4)
