"""Persona files in forms that a small model reads, as pairs, and their parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from steer.language.data import Pair
from steer.language.readers import PERSONA, personas, split

Question = Literal["published", "asked"]
Form = Literal["published", "asked", "said"]
"""How a statement is put to the model.

published  is it something you would say? " Yes" or " No", as in the file
asked      of the person who says it: is this person ...? " Yes" or " No"
said       which of two statements does a person say who has said a third? Wanted is the one that matches the persona,
           whatever the third does
"""
ASKED = 'A person says: "{{statement}}"\nQuestion: Is this person {trait}?\nAnswer:'
SAID = 'A person says: "{statement}"\nThe same person says:'
TRAITS = {
    "agreeableness": "kind to others",
    "extraversion": "outgoing and sociable",
    "interest-in-art": "interested in art",
    "machiavellianism": "willing to manipulate others",
    "politically-liberal": "politically liberal",
    "risk-averse": "careful to avoid risks",
}
"""What "asked" asks for, by file."""


def answered(path: Path, form: Question) -> list[Pair]:
    """A file's pairs of " Yes" and " No". Raises ValueError for "asked" of another file, and what `personas` raises."""
    if form == "published":
        return personas(path, PERSONA)
    if path.stem not in TRAITS:
        raise ValueError(f"{path}: no trait to ask for; expected a file of {sorted(TRAITS)}, or form='published'.")
    return personas(path, ASKED.format(trait=TRAITS[path.stem]))


def parts_of(path: Path, form: Form, sizes: Sequence[int], seed: int = 0) -> tuple[list[Pair], ...]:
    """Disjoint parts, with both kinds of statement in equal numbers; no statement is in two. Raises as `split`."""
    if form != "said":
        return split(answered(path, form), sizes, seed, balanced=True)
    statements = personas(path, "{statement}")
    return tuple(said(part) for part in split(statements, [2 * size for size in sizes], seed, balanced=True))


def said(statements: Sequence[Pair]) -> list[Pair]:
    """Statements with " Yes" or " No" -> half as many pairs of statements, the k-th shortest of each kind together.

    Each is a response once, and in a prompt at most once, half of the list away from there; prompts hold a statement of
    one kind and of the other by turns. In the order of the statements.
    """
    kinds = [[one.prompt for one in statements if one.positive == answer] for answer in (" Yes", " No")]
    ranked = list(zip(*(sorted(kind, key=len) for kind in kinds)))
    found = {}
    for k, (positive, negative) in enumerate(ranked):
        before = ranked[(k + len(ranked) // 2) % len(ranked)][k % 2]
        found[positive] = Pair(SAID.format(statement=before), f' "{positive}"', f' "{negative}"')
    return [found[positive] for positive in kinds[0]]
