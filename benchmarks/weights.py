"""Methods of fine-tuning that are about weights, at equal cost: what each learns of a new style, and what it forgets.

    python -m benchmarks.weights              all methods: about 40 minutes on one core; resumes where it stopped
    python -m benchmarks.weights --small      four methods, a few steps: about a minute
    python -m benchmarks.weights --seeds 3    and the spread over seeds

Each trains the embedded model on pictures of a style that it has never seen until its network rows reach the budget, a
row that carries a gradient counted for three, all data passes and models before it included; at each of three learning
rates, of which the best by other held-out pictures stands. Then losses of held-out pictures at fixed noise: of the new
style (learnt), and of known styles (forgot), in per cent of the loss before, with paired bootstrap 95 % intervals over
pictures. A method that cannot run here says why.

The checks are claims of the papers, as far as these runs bear on them. Writes a row a run to OUT/results.jsonl and the
tables to benchmarks/results/weights.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.output import alike, part_of, tabulate, text, write
from benchmarks.weights_checks import BASE, Found, short
from benchmarks.weights_claims import CHECKS
from benchmarks.weights_methods import ENTRIES
from benchmarks.weights_runs import before, run
from benchmarks.weights_world import Size
from steer import measure
from steer.bench.tables import table
from steer.cli import record, show

SMALL = {
    "methods": ("lora", "lt_sft", "qlora", "softrepa"),
    "rates": (1.0,),
    "train": 8,
    "held_out": 4,
    "steps": 2,
    "budget": 150,
}


@dataclass(frozen=True)
class Weights:
    """Methods by name, and those that some are compared with."""

    methods: tuple[str, ...] = tuple(ENTRIES)
    seeds: int = 1
    """runs of each, that differ in what is drawn"""
    rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    """learning rates, times the method's own"""
    model: str = "emoji-flow"
    train: int = 128
    """names to train on"""
    held_out: int = 40
    """names to choose rates by, and as many to measure"""
    budget: int = 1600
    """rows of a training run"""
    steps: int = 10
    """of the sampler, for checks that look at pictures"""
    guidance: float = 3.0
    small: bool = False
    out: Path = Path("steer-out/bench-weights")
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the tables go between its `<!-- python -m benchmarks.weights -->` and the end of that"""

    @property
    def size(self) -> Size:
        return Size(self.model, self.steps, self.guidance, self.train, self.held_out, self.budget)


SAME = ("model", "train", "held_out", "budget", "steps", "guidance")


def fill(bench: Weights, results: record.Rows) -> None:
    """Run what is missing. Raises ValueError for rows that other options have made, and for unknown methods."""
    if unknown := [name for name in bench.methods if name not in ENTRIES]:
        raise ValueError(f"methods {unknown}: expected some of {tuple(ENTRIES)}.")
    origin = {"config": json.loads(json.dumps(record.config(bench))), **record.origin()}
    alike(results, SAME, origin["config"])
    if not results.find(method=BASE):
        results.add({"method": BASE, "seed": 0, **before(bench.size), **origin})
    todo = [
        {"method": name, "seed": seed, "rate": rate}
        for seed in range(bench.seeds)
        for name in bench.methods
        for rate in (bench.rates if ENTRIES[name].tried else (1.0,))
    ]
    todo = [each for each in todo if not results.find(**each)]
    with show.bars() as bars:
        task = bars.add_task("weights", total=len(todo))
        for each in todo:
            results.add({**each, **attempt(bench, results, **each), **origin})
            bars.advance(task)


def attempt(bench: Weights, results: record.Rows, method: str, seed: int, rate: float) -> dict[str, Any]:
    """A run, or why there is none."""
    known = [row["steps"] for row in results.find(method=method) if "steps" in row]
    lr = rate * ENTRIES[method].lr
    try:
        return {"lr": lr, **run(method, lr, seed, bench.size, *known[:1])}
    except (ValueError, torch.linalg.LinAlgError) as error:
        return {"lr": lr, "failed": str(error)}


def lines(bench: Weights, found: Found) -> list[dict[str, Any]]:
    """Every method beside the model before training, at its best learning rate."""
    every = []
    for name in bench.methods:
        line = dict.fromkeys(("learnt %", "learns", "forgot %", "trained", "changed", "lr", "steps", "cost", "s"))
        try:
            rows, learnt = found.chosen(name), found.learnt(name)
        except ValueError as error:
            every.append({"method": name, **line, "note": f"not run: {short(error)}"})
            continue
        gain = measure.interval(learnt)
        line |= {"learnt %": gain, "learns": gain.low > 0, "forgot %": measure.interval(found.forgot(name))}
        line |= {key: rows[0][key] for key in ("trained", "changed", "lr", "steps", "cost")}
        tried = len({row["rate"] for row in found.tried(name)})
        note = (
            "" if not ENTRIES[name].tried or tried == len(bench.rates) else f"{tried} rates of {len(bench.rates)} ran"
        )
        every.append({"method": name, **line, "s": rows[0]["seconds"], "note": note})
    return every


def main(bench: Weights) -> None:
    """Run what is missing, then write the tables."""
    bench = replace(bench, **SMALL) if bench.small else bench
    record.folder(bench.results)
    part = part_of(bench)
    results = record.Rows(record.folder(bench.out) / "results.jsonl")
    fill(bench, results)
    found = Found(row for row in results.rows if row["seed"] < bench.seeds)
    tables = {
        "table": lines(bench, found),
        "checks": [check.line(found) for check in CHECKS if check.method in bench.methods],
    }
    tabulate(tables["table"], f"{bench.model} learns a style at equal cost; 95 % intervals", None)
    tabulate(tables["checks"], "what the papers claim", None)
    if part is not None:
        part.write(
            "\n".join(table([{k: text(v) for k, v in line.items()} for line in each]) for each in tables.values())
        )
    write(bench, tables)


if __name__ == "__main__":
    main(tyro.cli(Weights, description=__doc__))
