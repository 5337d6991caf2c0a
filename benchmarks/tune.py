"""Fine-tuning by a reward at equal cost: what it buys on prompts that no run has seen, and what it loses.

    python -m benchmarks.tune                 all methods, both rewards: about an hour on one core; resumes
    python -m benchmarks.tune --small         three methods, an update or two, two prompts

Each method trains the embedded model until its network rows reach the budget, a row that carries a gradient counted for
three. Then pictures of held-out names, from the same noise for all, are scored by the reward, by the judge that no
method sees, and for diversity; drift is the mean squared change of the prediction on noised real pictures. Differences
to the model before training with paired bootstrap 95 % intervals over prompts.

For compressibility direct reward follows a smooth estimate of the file's size; all are measured by the real one.
Writes a row a run to OUT/results.jsonl and the table to benchmarks/results/tune.json.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.output import alike, part_of, tabulate, write
from benchmarks.tune_runs import REWARDS, Size, cost, drift, measured, task_of, trained
from steer import measure
from steer.cli import record, show
from steer.training.diffusion import METHODS, Pairs

BLACK_BOX = ("ddpo", "dpok", "prdp", "nft", "texforce")
DIALS: dict[str, dict[str, Any]] = {
    "draft": {"lr": 5e-5},
    "draft_k": {"k": 2, "lr": 1e-4},
    "draft_lv": {"lr": 1e-4},
    "alignprop": {"lr": 5e-5},
    "imagerefl": {"lr": 1e-4},
    "ddpo": {"prompts": 1, "each": 8, "lr": 2e-3},
    "dpok": {"prompts": 2, "each": 4, "lr": 2e-3},
    "texforce": {"prompts": 1, "each": 8, "lr": 2e-3},
    "prdp": {"prompts": 2, "updates": 1, "clip": 1e-2, "shared": True, "lr": 2e-3},
    "nft": {"updates": 4, "lr": 2e-3},
}
"""Where a paper's own dials are for models a hundred times the size: found in short runs for compressibility, judged on
names of another part than those held out here; rates under which pictures were lost there are lower here. Runs of one
prompt in a batch: a few hundred cannot learn apart how much the rewards of prompts differ."""
BASE = "base"
MEASURES = ("reward", "judge", "diversity")
SMALL = {
    "methods": ("draft_lv", "ddpo", "nft"),
    "rewards": ("compressibility",),
    "train": 4,
    "prompts": 2,
    "seeds": 2,
    "pictures": 8,
    "steps": 3,
    "budget": 30,
    "look": 1,
}


@dataclass(frozen=True)
class Tune:
    """Methods of `steer.training.diffusion`, by name."""

    methods: tuple[str, ...] = (
        *("draft", "draft_k", "draft_lv", "alignprop", "refl", "imagerefl"),
        *("ddpo", "dpok", "texforce", "prdp", "nft"),
    )
    rewards: tuple[str, ...] = ("compressibility", "alignment")
    model: str = "emoji-flow"
    steps: int = 6
    guidance: float = 1.0
    """1: without, which emoji-flow does as well without; above, pictures are made with and without it"""
    train: int = 64
    """prompts to train on"""
    prompts: int = 64
    """held-out prompts"""
    seeds: int = 4
    pictures: int = 256
    """real ones, for the methods that want them and for the drift"""
    budget: int = 8_000
    """rows of a training run"""
    look: int = 4
    """updates between two looks at what has been spent"""
    small: bool = False
    out: Path = Path("steer-out/bench-tune")
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table goes between its `<!-- python -m benchmarks.tune -->` and the end of that"""


SAME = ("model", "steps", "guidance", "train", "prompts", "seeds", "pictures", "budget", "look")


def sampled(bench: Tune) -> tuple[str, ...]:
    """With guidance and without."""
    return ("guided", "unguided") if bench.guidance > 1 else ("unguided",)


def run(bench: Tune, name: str, reward: str, real: Pairs) -> dict[str, Any]:
    """Train by a method, or not at all, and measure what comes of it."""
    size = Size(**{field: getattr(bench, field) for field in SAME})
    smooth, exact = REWARDS[reward]
    task, began = task_of(size, exact if name in BLACK_BOX else smooth, real), time.perf_counter()
    log, found = [], {"drift": 0.0}
    if name != BASE:
        method = METHODS[name](**DIALS.get(name, {}))
        handle, log = trained(task, method, size, bench.out / f"{reward}-{name}")
        found = {"seconds": time.perf_counter() - began, "drift": drift(task, handle)}
    spent = {key: sum(row[key] for row in log) for key in ("rows", "backward_rows", "reward_calls", "decodes")}
    found |= {how: measured(task, size, exact, how == "guided") for how in sampled(bench)}
    return {"updates": len(log), "cost": cost(log), **spent, **found, "curve": [row["reward"] for row in log]}


def fill(bench: Tune, results: record.Rows) -> None:
    """Run what is missing. Raises ValueError for rows that other options have made, and for unknown methods."""
    if unknown := [name for name in bench.methods if name not in METHODS]:
        raise ValueError(f"methods {unknown}: expected some of {tuple(METHODS)}.")
    base = {"config": json.loads(json.dumps(record.config(bench))), **record.origin()}
    alike(results, SAME, base["config"])
    todo = [
        (reward, name)
        for reward in bench.rewards
        for name in (BASE, *bench.methods)
        if not results.find(reward=reward, method=name)
    ]
    if not todo:
        return
    size = Size(**{field: getattr(bench, field) for field in SAME})
    real = task_of(size, REWARDS[todo[0][0]][0]).pairs()
    with show.bars() as bars:
        task = bars.add_task("tune", total=len(todo))
        for reward, name in todo:
            results.add({"reward": reward, "method": name, **run(bench, name, reward, real), **base})
            bars.advance(task)


def lines(bench: Tune, results: record.Rows) -> list[dict[str, Any]]:
    """Every method beside the model before training."""
    found = []
    for reward in bench.rewards:
        (base,) = results.find(reward=reward, method=BASE)
        for name in bench.methods:
            (row,) = results.find(reward=reward, method=name)
            for how in sampled(bench):
                line = {"reward": reward, "method": name, "sampled": how, "updates": row["updates"]}
                for each in (m for m in MEASURES if row[how][m] is not None):
                    gap = torch.tensor(row[how][each]) - torch.tensor(base[how][each])
                    line[f"{each} - base"] = measure.interval(gap)
                found.append({**line, "drift": row["drift"], "cost": row["cost"]})
    return found


def main(bench: Tune) -> None:
    """Run what is missing, then write the table."""
    bench = replace(bench, **SMALL) if bench.small else bench
    record.folder(bench.results)
    part = part_of(bench)
    results = record.Rows(record.folder(bench.out) / "results.jsonl")
    fill(bench, results)
    table = lines(bench, results)
    tabulate(table, "tuned minus the model before, on held-out prompts; 95 % intervals", part)
    write(bench, {"table": table})


if __name__ == "__main__":
    main(tyro.cli(Tune, description=__doc__))
