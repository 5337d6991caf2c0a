"""Word problems with worked solutions in several wordings, and invented facts with one right answer each."""

from __future__ import annotations

import re
from random import Random

from steer.training.text import Example

NAMES = "Ann Ben Cora Dan Eve Finn Gina Hugo Iris Jack".split()  # noqa: SIM905
THINGS = "apples books coins cards shells pens stamps buttons".split()  # noqa: SIM905
STORIES = (
    "{name} has {a} {things}, buys {b} more and loses {c}. How many {things} are left?",
    "{name} finds {a} {things} and gets {b} from a friend. Then {c} break. How many {things} remain?",
    "There are {a} {things} in a box. {name} adds {b} and takes {c} out. How many {things} are in it?",
)
OTHER_STORIES = (
    "A bus carries {a} people. {b} get on and {c} get off. How many people are on it?",
    "A farmer owns {a} hens. He is given {b} and sells {c}. How many hens does he own?",
    "{a} birds sit in a tree. {b} join them and {c} fly away. How many birds sit there?",
)
SOLUTIONS = (
    " {a} + {b} = {s} and {s} - {c} = {r}. The answer is {r}.",
    " First there are {s}, as {a} plus {b} is {s}. Without {c} it is {r}.",
    " Add {a} and {b} to get {s}. Take away {c}: {r}.",
    " {b} more than {a} is {s}, and {c} less is {r}. So {r}.",
)
SYLLABLES = "ba do ki lu me na po ri su ta ve zo".split()  # noqa: SIM905
COLOURS = "red blue green black white brown pink grey".split()  # noqa: SIM905


def problems(count: int, seed: int, other: bool = False, largest: int = 9) -> list[Example]:
    """Sums a + b - c in stories, each with one of the solutions; other: in stories of which none is in the first set.

    Numbers are from 2 to the largest, c smaller than a.
    """
    draw, found = Random(seed), []
    for _ in range(count):
        a, b = draw.randint(3, largest), draw.randint(2, largest)
        c = draw.randint(2, a - 1)
        words = {"name": draw.choice(NAMES), "things": draw.choice(THINGS), "a": a, "b": b, "c": c}
        words |= {"s": a + b, "r": a + b - c}
        story = draw.choice(OTHER_STORIES if other else STORIES).format(**words)
        found.append(Example(f"Problem: {story}\nSolution:", draw.choice(SOLUTIONS).format(**words)))
    return found


def invented(count: int, seed: int) -> list[Example]:
    """The colours of animals that there are not; none twice. Raises ValueError for more than there are names."""
    names = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES if len({a, b, c}) == 3]
    if count > len(names):
        raise ValueError(f"{count} facts about {len(names)} names: ask for fewer.")
    draw = Random(seed)
    return [
        Example(f"Question: Which colour is a {name}?\nAnswer:", f" {draw.choice(COLOURS)}")
        for name in draw.sample(names, count)
    ]


def right(answer: str, example: Example) -> bool:
    """A solution ends with the right number; any other answer begins with what is right."""
    if not example.prompt.endswith("Solution:"):
        return answer.strip().lower().startswith(example.answer.strip())
    numbers, wanted = (re.findall(r"\d+", text) for text in (answer, example.answer))
    return bool(numbers) and numbers[-1] == wanted[-1]
