"""Published questions with answers of several domains, as examples of a few tokens."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.texts_parts import World, cut
from steer.language.readers import split
from steer.training.text import Example

PROMPT = "### Instruction:\n{}\n\n### Response:\n"


def _gsm8k(data: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (data / "gsm8k_test.jsonl").read_text().splitlines()]
    return [(row["question"], re.sub("<<.*?>>", "", row["answer"])) for row in rows]


def _self_instruct(data: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (data / "self_instruct_seed_tasks.jsonl").read_text().splitlines()]
    return [(row["instruction"], row["instances"][0]["output"]) for row in rows]


def _truthful(data: Path) -> list[tuple[str, str]]:
    with (data / "truthfulqa.csv").open(encoding="utf-8", newline="") as file:
        return [(row["Question"], row["Best Answer"]) for row in csv.DictReader(file)]


DOMAINS: dict[str, Callable[[Path], list[tuple[str, str]]]] = {
    "gsm8k": _gsm8k,
    "self-instruct": _self_instruct,
    "truthfulqa": _truthful,
}


def examples(world: World, name: str, count: int, asked: int, answered: int) -> list[Example]:
    """The part "1" or "2" of a domain, as in "gsm8k 1": prompts of at most `asked` tokens, the template apart, and
    answers of at most `answered`. Raises ValueError for fewer than `count` in each part."""
    domain, part = name.split(" ")
    every = [Example(question, answer.strip()) for question, answer in DOMAINS[domain](world.data) if answer.strip()]
    own = split(every, (count, count))[int(part) - 1]
    short = lambda text, tokens: cut(world.tokenizer, text, tokens)  # noqa: E731
    return [Example(PROMPT.format(short(one.prompt, asked)), short(one.answer, answered)) for one in own]
