"""Does attribution find the tokens that matter, how complete is it, and what does it cost? SmolLM2, real pairs.

    python -m benchmarks.grains --part reading         does the model read the files at all? and with --form published
    python -m benchmarks.grains --part attribution     the check of the method: about 15 minutes on one core; the same
                                                       with --words all --baseline random
    python -m benchmarks.grains --part gaps            five baselines: about 20 minutes; and with --words all
    python -m benchmarks.grains --part speed           against captum: about 10 minutes
    python -m benchmarks.grains --small                all parts, a few minutes

What comes of it for steering: benchmarks.persona.

Persona files, by default in a form that SmolLM2 reads (`benchmarks.forms`), have one-token answers, " Yes" and " No" in
equal numbers. Data: persona/*.jsonl of anthropics/evals and
TruthfulQA.csv of sylinrl/TruthfulQA, in --data. Rows go to OUT/results.jsonl as they come, so that a killed run
resumes; tables to benchmarks/results/grains.json.

    reading      by file: how often the margin of " Yes" over " No" is higher for a statement that matches the persona
                 than for one that does not (area under the ROC curve), 95 % interval by DeLong's variance
    attribution  what masking does to the preference margin: I+ must lower it more than as many random tokens, I- raise
                 it more, with paired bootstrap intervals above 0
    gaps         |sum of scores - (f(x) - f(b))| / |f(x) - f(b)| of five baselines: median, and pooled (sum over sum)
    speed        the same scores, from the same points, by captum's `LLMGradientAttribution`: alternating runs
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro

import steer
from benchmarks.forms import Question, answered
from benchmarks.grains_runs import area, compared, dropped, gapped, peaks
from benchmarks.grains_tables import TABLES
from benchmarks.output import part_of, tabulate, write
from steer.cli import record, show
from steer.language.data import Pair
from steer.language.grains.baselines import Baseline
from steer.language.readers import split, truthful_qa
from steer.language.scoring import margins

Part = Literal["all", "reading", "attribution", "gaps", "speed"]


@dataclass(frozen=True)
class Grains:
    """Which part, and how much of it."""

    part: Part = "all"
    data: Path = Path("../shared/data")
    personas: tuple[str, ...] = ("interest-in-art", "extraversion")
    form: Question = "asked"
    """how their statements are put to the model: `benchmarks.forms`"""
    pairs: int = 48
    """of each persona, for the check"""
    read: int = 200
    """statements of each persona, for the reading"""
    k: int = 5
    baseline: Baseline = "prompt"
    """of the check"""
    words: Literal["own", "all"] = "own"
    """which tokens the check may choose and draw, and baselines replace: those that not all prompts share, or all"""
    draws: int = 5
    """of random tokens for each pair"""
    gap_pairs: int = 8
    """of a persona, and of TruthfulQA"""
    levels: tuple[int, ...] = (20, 60)
    """points, for the gaps"""
    speed_pairs: int = 3
    rounds: int = 3
    small: bool = False
    """4 pairs, 8 statements for the reading, 2 pairs for the gaps with 6 points, 1 for the speed"""
    out: Path = Path("steer-out/bench-grains")
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table of the check goes between its `<!-- python -m benchmarks.grains -->` and the end"""

    @property
    def sized(self) -> Grains:
        few = {"pairs": 4, "read": 8, "draws": 2, "gap_pairs": 2, "levels": (6,), "speed_pairs": 1, "rounds": 1}
        return replace(self, **few) if self.small else self

    @property
    def parts(self) -> tuple[str, ...]:
        return get_args(Part)[1:] if self.part == "all" else (self.part,)


def main(bench: Grains) -> None:
    """Run what is missing, then write the tables of all parts that have rows."""
    asked = bench.sized
    record.folder(asked.results)
    page, rows = part_of(asked), record.Rows(record.folder(asked.out) / "results.jsonl")
    data = read(asked)
    model, tokenizer = steer.load("smollm2")
    with show.bars() as bars:
        for part in asked.parts:
            RUNS[part](asked, model, tokenizer, data, rows, bars)
    tables = {part: table(rows.find(part=part, small=asked.small)) for part, table in TABLES.items()}
    for part, lines in tables.items():
        if lines:
            tabulate(lines, f"{part}: SmolLM2-135M-Instruct", page if part == "attribution" else None)
    write(asked, {"threads": torch.get_num_threads(), **tables})


def read(bench: Grains) -> dict[str, list[Pair]]:
    """Name -> all pairs of a file."""
    found = {name: answered(bench.data / "persona" / f"{name}.jsonl", bench.form) for name in bench.personas}
    return {**found, "truthfulqa": truthful_qa(bench.data / "truthfulqa.csv")}


def reading(bench: Grains, model: Any, tokenizer: Any, data: dict, rows: record.Rows, bars: Any) -> None:
    task = bars.add_task("reading", total=len(bench.personas))
    for name in bench.personas:
        cell = {"part": "reading", "data": name, "form": bench.form, "statements": bench.read, "small": bench.small}
        if not rows.find(**cell):
            (pairs,) = split(data[name], (bench.read,), balanced=True)
            matching = torch.tensor([pair.positive == " Yes" for pair in pairs])
            yes = margins(model, tokenizer, pairs).float().cpu() * (2 * matching - 1)  # " Yes" over " No"
            rows.add({**cell, "area": list(area(yes[matching], yes[~matching])), **record.origin()})
        bars.advance(task)


def attribution(bench: Grains, model: Any, tokenizer: Any, data: dict, rows: record.Rows, bars: Any) -> None:
    methods = ("ig", "occlusion")
    task = bars.add_task("attribution", total=len(bench.personas) * bench.pairs * len(methods))
    for name in bench.personas:
        (chosen,) = split(data[name], (bench.pairs,), balanced=True)
        others = [pair.prompt for pair in data[name]] if bench.words == "own" else []
        for number, pair in enumerate(chosen):
            for method in methods:
                how = {
                    "method": method,
                    "form": bench.form,
                    "words": bench.words,
                    "k": bench.k,
                    "asked": None if method == "occlusion" else bench.baseline,
                }
                cell = {"part": "attribution", "data": name, "pair": number, **how, "small": bench.small}
                if not rows.find(**cell):
                    found = dropped(model, tokenizer, pair, others, method, bench.baseline, bench.k, bench.draws)
                    rows.add({**cell, **found, **record.origin()})
                bars.advance(task)


def gaps(bench: Grains, model: Any, tokenizer: Any, data: dict, rows: record.Rows, bars: Any) -> None:
    names, kinds = (bench.personas[0], "truthfulqa"), get_args(Baseline)
    task = bars.add_task("gaps", total=len(names) * (len(kinds) - (bench.words == "all")) * bench.gap_pairs)
    for name in names:
        (chosen,) = split(data[name], (bench.gap_pairs,), seed=1)
        others = [pair.prompt for pair in data[name]] if bench.words == "own" else []
        for kind in kinds if bench.words == "own" else kinds[1:]:  # "prompt" takes the place of own words alone
            for number, pair in enumerate(chosen):
                how = {"form": bench.form, "words": bench.words, "baseline": kind, "pair": number}
                cell = {"part": "gaps", "data": name, **how, "small": bench.small}
                if not rows.find(**cell):
                    for found in gapped(model, tokenizer, pair, others, kind, bench.levels):
                        rows.add({**cell, **found, **record.origin()})
                bars.advance(task)


def speed(bench: Grains, model: Any, tokenizer: Any, data: dict, rows: record.Rows, bars: Any) -> None:
    names = (bench.personas[0], "truthfulqa")
    task = bars.add_task("speed", total=len(names) * bench.speed_pairs)
    for name in names:
        (chosen,) = split(data[name], (bench.speed_pairs,), seed=2)
        others = [pair.prompt for pair in data[name]]
        for number, pair in enumerate(chosen):
            cell = {"part": "speed", "data": name, "form": bench.form, "pair": number, "small": bench.small}
            if not rows.find(**cell):
                found = compared(model, tokenizer, pair, others, bench.levels[0], bench.rounds)
                memory = peaks(pair, others, bench.levels[0]) if number == 0 else {}
                rows.add({**cell, **found, **memory, **record.origin()})
            bars.advance(task)


RUNS = {"reading": reading, "attribution": attribution, "gaps": gaps, "speed": speed}


if __name__ == "__main__":
    main(tyro.cli(Grains, description=__doc__))
