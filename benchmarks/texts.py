"""Claims of papers on fine-tuning of language models, on SmolLM2: which examples teach, what has changed, and when.

    python -m benchmarks.texts                   all parts: 45 minutes on one core; resumes where it stopped
    python -m benchmarks.texts --parts diet      one of them
    python -m benchmarks.texts --small           a few steps each, which show nothing but that it runs

    diet    GraNd and EL2N on wrong labels (arXiv 2211.05610), dynamic data subsets (arXiv 2306.03208)
    delta   Delta Activations of six adapters (arXiv 2509.04442)
    signs   vanishing gradients of prompts without spread, and their cure (arXiv 2310.20703)
    dft     DFT beside supervised tuning (arXiv 2508.05629)

Numbers have 95 % bootstrap intervals: paired, over seeds, prompts, examples or texts. A run that fails says why, and so
do the checks that need it. Writes a row a run to OUT/results.jsonl and the tables to benchmarks/results/texts.json.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

import steer
from benchmarks import texts_delta, texts_dft, texts_diet, texts_signs
from benchmarks.output import part_of, tabulate, text, write
from benchmarks.texts_parts import Part, Row, World
from benchmarks.weights_checks import short
from steer.bench.tables import table
from steer.cli import record, show

Name = Literal["diet", "delta", "signs", "dft"]
PARTS: dict[Name, Part] = {
    "diet": texts_diet.PART,
    "delta": texts_delta.PART,
    "signs": texts_signs.PART,
    "dft": texts_dft.PART,
}


@dataclass(frozen=True)
class Texts:
    """How much of it."""

    parts: tuple[Name, ...] = tuple(PARTS)
    data: Path = Path("../shared/data")
    seeds: int = 10
    """of the part with many short runs, diet"""
    small: bool = False
    out: Path = Path("steer-out/bench-texts")
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the tables go between its `<!-- python -m benchmarks.texts -->` and the end of that"""


def main(bench: Texts) -> None:
    """Run what is missing, then write the tables of the parts that were asked for."""
    record.folder(bench.results)
    page, rows = part_of(bench), record.Rows(record.folder(bench.out) / "results.jsonl")
    model, tokenizer = steer.load("smollm2")
    checks, tables = [], {}
    for name in bench.parts:
        part = PARTS[name]
        folder = record.folder(bench.out / f"{name}{'-small' * bench.small}")
        world = World(model, tokenizer, bench.data, folder)
        found = fill(bench, name, world, rows)
        checks += [{"part": name, **check.line(found)} for check in part.checks]
        tables[name] = lines(part, found)
    tables = {"checks": checks, **tables}
    for title, each in tables.items():
        tabulate(each, f"{title}; 95 % intervals", None)
    if page is not None:
        shown = [[{name: text(value) for name, value in line.items()} for line in each] for each in tables.values()]
        page.write("\n".join(map(table, shown)))
    write(bench, {"tables": tables})


def fill(bench: Texts, name: Name, world: World, rows: record.Rows) -> list[Row]:
    """The rows of a part, those that are missing run first; rows of other sizes are left alone."""
    part, found = PARTS[name], []
    size = part.small if bench.small else part.size
    made = {"part": name, "size": json.loads(json.dumps(asdict(size)))}
    cells = part.cells(size, bench.seeds)
    with show.bars() as bars:
        task = bars.add_task(name, total=len(cells))
        for cell in cells:
            if not rows.find(**made, **cell):
                rows.add({**made, **cell, **attempt(part, world, size, cell), **record.origin()})
            found += rows.find(**made, **cell)
            bars.advance(task)
    return found


def attempt(part: Part, world: World, size: Any, cell: Row) -> Row:
    """What came of a run, or why nothing did, and how long it took."""
    began = time.process_time()
    try:
        found = part.run(world, size, **cell)
    except ValueError as error:
        found = {"failed": str(error)}
    return {**found, "cpu seconds": time.process_time() - began}


def lines(part: Part, rows: list[Row]) -> list[Row]:
    """The table of a part, or why there is none."""
    try:
        return part.lines(rows)
    except ValueError as error:
        return [{"not made": short(error)}]


if __name__ == "__main__":
    main(tyro.cli(Texts, description=__doc__))
