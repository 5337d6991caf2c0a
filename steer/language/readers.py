"""Published preference data as pairs, and their splits."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

from steer.language.data import Choices, Pair

PERSONA, QUESTION = "{question}\nAnswer:", "Q: {question}\nA:"


def personas(path: str | Path, template: str = PERSONA) -> list[Pair]:
    """A file of model-written persona evaluations: statements to agree with by " Yes" or " No" (arXiv 2212.09251).

    template  of a row's `question`, "Is the following statement something you would say?" with the statement, or of its
              bare `statement`

    Raises FileNotFoundError, with the source, where there is no such file, and ValueError for other contents.
    """
    with _opened(path, "anthropics/evals, persona/*.jsonl") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    try:
        return [
            Pair(
                template.format(**row),
                row["answer_matching_behavior"],
                row["answer_not_matching_behavior"],
            )
            for row in rows
        ]
    except KeyError as missing:
        raise ValueError(f"{path}: a row without {missing}; expected a persona file of anthropics/evals.") from missing


def truthful_qa(path: str | Path, template: str = QUESTION) -> list[Pair]:
    """TruthfulQA.csv as pairs: the best answer against the best incorrect one (arXiv 2109.07958). Raises as above."""
    return [
        Pair(template.format(question=row["Question"]), " " + row["Best Answer"], " " + row["Best Incorrect Answer"])
        for row in _truthful_qa(path)
    ]


def truthful_qa_choices(path: str | Path, template: str = QUESTION) -> list[Choices]:
    """TruthfulQA.csv as single-answer choices (MC1): the best answer against all incorrect ones. Raises as above."""
    found = []
    for row in _truthful_qa(path):
        wrong = [answer.strip() for answer in row["Incorrect Answers"].split(";")]
        options = dict.fromkeys([row["Best Answer"], *(answer for answer in wrong if answer)])
        found.append(Choices(template.format(question=row["Question"]), tuple(" " + option for option in options)))
    return found


def _truthful_qa(path: str | Path) -> list[dict[str, str]]:
    with _opened(path, "sylinrl/TruthfulQA, TruthfulQA.csv") as file:
        rows = list(csv.DictReader(file))
    wanted = {"Question", "Best Answer", "Best Incorrect Answer", "Incorrect Answers"}
    if not rows or not wanted <= rows[0].keys():
        raise ValueError(f"{path}: columns {list(rows[0]) if rows else []}; expected {sorted(wanted)} among them.")
    return [{name: (text or "").strip() for name, text in row.items() if name in wanted} for row in rows]


def _opened(path: str | Path, source: str) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; it comes from {source} on GitHub.")
    return Path(path).open(encoding="utf-8", newline="")


def split(pairs: Sequence[Any], sizes: Sequence[int], seed: int = 0, balanced: bool = False) -> tuple[list[Any], ...]:
    """Disjoint parts of pairs or choices of the given sizes, the same on every machine.

    Pairs are put in the order of a hash of their content and of `seed`; of pairs with the same prompt and image one is
    used, so no question is in two parts. balanced: as many of each positive response (half " Yes", half " No").
    Raises ValueError where there are too few.
    """
    distinct = {_key(pair): pair for pair in pairs}
    order = sorted(distinct.values(), key=lambda pair: _key(pair, seed))
    if balanced:
        kinds = {pair.positive: [] for pair in order}
        for pair in order:
            kinds[pair.positive].append(pair)
        order = list(chain.from_iterable(zip(*(kinds[kind] for kind in sorted(kinds)), strict=False)))
    if sum(sizes) > len(order):
        raise ValueError(
            f"parts of {tuple(sizes)} need {sum(sizes)} pairs, and there are {len(order)} with different prompts"
            f"{' and balanced responses' if balanced else ''}: ask for fewer."
        )
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    return tuple(order[end - size : end] for size, end in zip(sizes, ends))


def _key(pair: Pair | Choices, *salt: int) -> bytes:
    digest = blake2b(repr((*salt, pair.prompt)).encode(), digest_size=16)
    if pair.image is not None:
        import numpy as np

        image = pair.image
        digest.update(str(image).encode() if isinstance(image, str | Path) else np.asarray(image).tobytes())
    return digest.digest()
