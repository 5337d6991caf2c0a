"""Composition on emoji-sd: are both objects there, and where they should be? Attention losses against plain sampling.

    python -m benchmarks.compose                full size: hours; resumes where it stopped
    python -m benchmarks.compose --small        a few minutes

Pairs of names that were never trained on together. Objects are counted by `emoji-judge`, in the two places where scenes
have them (NAME-R@5); no method sees it. Step sizes are chosen on other prompts, pairs that were trained on, by
emoji-clip, which is also the verifier of the refinement. Writes one row a method and batch of prompts to
OUT/results.jsonl, and benchmarks/results/compose.json.

    presence    "<A> and <B>": both there; spread of the pixels and share of clipped ones; standard deviation of the
                latents after SAGA's step, by that of plain sampling
    relation    "<A> to the left of <B>": A on the left and B on the right
    refinement  the same prompts: two stages against the better of two seeds of stage 1, by the same verifier
    terms       each of stage 1's losses alone, and what it does to its own value at half of the run
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.compose_runs import Size, refinement, sampled, term_values
from benchmarks.output import part_of, tabulate, write
from benchmarks.scenes import Scene, nearness, ranks, scenes
from steer import zoo
from steer.cli import record, show
from steer.measure import interval
from steer.rewards import ClipScore

PRESENCE = ("plain", "attend-and-excite", "initno", "saga", "saga, not rescaled", "saga+")
RELATION = ("plain", "aligned")
SWEPT = {"attend-and-excite": "and", "saga": "and", "aligned": "to the left of"}
"""Method -> relation of the prompts on which its step size is chosen; the others take that of their kin."""
KIN = {"saga, not rescaled": "saga", "saga+": "saga"}
TERMS = ("missing", "mixing", "spatial")
BATCH = 8


@dataclass(frozen=True)
class Compose:
    """Same prompts, same noise, same steps for all methods."""

    model: str = "emoji-sd"
    """or emoji-flow, whose maps have side 8"""
    prompts: int = 64
    seeds: int = 4
    steps: int = 50
    guidance: float = 3.0
    iterations: int = 50
    """of SAGA and InitNO"""
    noises: int = 10
    """of SAGA"""
    side: int = 16
    """of the maps"""
    padding: bool = False
    """whether attention is shared with padding too: emoji-sd rests most of it there"""
    sweep: tuple[float, ...] = (2.0, 5.0, 10.0, 20.0, 50.0)
    """step sizes; lr of SAGA"""
    sweep_prompts: int = 16
    small: bool = False
    """16 prompts, 2 seeds, 20 steps, a distribution of 20 x 4 rows, two step sizes on 4 prompts"""
    out: Path = Path("steer-out/bench-compose")
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table goes between its `<!-- python -m benchmarks.compose -->` and the end of that"""

    @property
    def sized(self) -> Compose:
        few = {"prompts": 16, "seeds": 2, "steps": 20, "iterations": 20, "noises": 4, "sweep": (5.0, 20.0)}
        return replace(self, **few, sweep_prompts=4) if self.small else self

    @property
    def base(self) -> dict[str, Any]:
        """What rows that are resumed must have been made with."""
        apart = ("small", "out", "results", "into")
        return {name: value for name, value in json.loads(json.dumps(record.config(self))).items() if name not in apart}

    @property
    def size(self) -> Size:
        call = zoo.CALLS.get(self.model, {})
        return Size(self.seeds, self.steps, self.guidance, self.iterations, self.noises, self.side, self.padding, call)


def main(bench: Compose) -> None:
    """Run what is missing, then write the tables."""
    asked = bench.sized
    out, part = record.folder(asked.out), part_of(asked)
    record.folder(asked.results)
    rows = record.Rows(out / "results.jsonl")
    pipe = zoo.load(asked.model)
    pipe.set_progress_bar_config(disable=True)
    with show.bars() as bars:
        work = Work(asked, pipe, rows, bars)
        steps = {method: chosen(work, method) for method in SWEPT}
        for method in PRESENCE:
            work.each("presence", method, steps, scenes(asked.prompts, "and"))
        for method in (*RELATION, "refinement"):
            work.each("relation", method, steps, scenes(asked.prompts, "to the left of"))
        for method in ("plain", *TERMS):
            work.each("terms", method, steps, scenes(min(16, asked.prompts), "to the left of"))
    tables = {"presence": presence(work), "relation": relation(work), "terms": terms(work)}
    for name, lines in tables.items():
        tabulate(lines, f"{name}: {asked.model}, 95 % intervals", part if name == "presence" else None)
    write(asked, {"step sizes": steps, **tables})


@dataclass(frozen=True)
class Work:
    """Runs batches that have no row yet."""

    bench: Compose
    pipe: Any
    rows: record.Rows
    bars: Any

    def each(self, part: str, method: str, steps: dict[str, float], asked: list[Scene]) -> list[dict[str, Any]]:
        """The rows of a method on all batches of some scenes."""
        step, base = steps.get(KIN.get(method, method), steps["aligned"]), self.bench.base
        task = self.bars.add_task(f"{part}: {method}", total=len(asked))
        found = []
        for k in range(0, len(asked), BATCH):
            cell = {"part": part, "method": method, "step": step, "at": k, "config": base}
            if not self.rows.find(**cell):
                self.rows.add({**cell, **self._run(part, method, step, asked[k : k + BATCH], k), **record.origin()})
            found += self.rows.find(**cell)
            self.bars.advance(task, len(asked[k : k + BATCH]))
        return found

    def _run(self, part: str, method: str, step: float, asked: list[Scene], seed: int) -> dict[str, Any]:
        if part == "terms":
            return term_values(self.pipe, self.bench.size, method, step, asked, seed)
        if method == "refinement":
            return refinement(self.pipe, self.bench.size, step, asked, seed)
        return sampled(self.pipe, self.bench.size, method, step, asked, seed)[0]

    def values(self, part: str, method: str, name: str) -> torch.Tensor:
        """(prompts, seeds) what the batches of a method found."""
        mine = sorted(self.rows.find(part=part, method=method, config=self.bench.base), key=lambda row: row["at"])
        return torch.tensor([line for row in mine for line in row[name]])

    def cost(self, part: str, method: str) -> dict[str, float]:
        """Rows for each picture."""
        mine = self.rows.find(part=part, method=method, config=self.bench.base)
        pictures = sum(row["pictures"] for row in mine)
        return {f"{kind} a picture": sum(row[kind] for row in mine) / pictures for kind in ("rows", "backward_rows")}


def chosen(work: Work, method: str) -> float:
    """The step size under which both objects are nearest to being named, by emoji-clip, on prompts kept for that."""
    asked = scenes(work.bench.sweep_prompts, SWEPT[method], held_out=False, seed=1)
    task, found = work.bars.add_task(f"step size: {method}", total=len(work.bench.sweep)), {}
    for step in work.bench.sweep:
        cell = {"part": "sweep", "method": method, "step": step, "config": work.bench.base}
        if not work.rows.find(**cell):
            _, pictures = sampled(work.pipe, work.bench.size, method, step, asked, 10**6)
            work.rows.add({**cell, "near": float(nearness(ranks(pictures, asked, ClipScore())).mean())})
        found[step] = work.rows.find(**cell)[0]["near"]
        work.bars.advance(task)
    return max(found, key=found.__getitem__)


def presence(work: Work) -> list[dict[str, Any]]:
    """One line a method; differences are paired over prompts."""
    lines = []
    plain = {name: work.values("presence", "plain", name) for name in ("both", "pixel std", "clipped", "spread")}
    for method in PRESENCE:
        mine = {name: work.values("presence", method, name) for name in plain}
        line: dict[str, Any] = {"method": method, "both present": float(mine["both"].mean())}
        for other in ("plain", "attend-and-excite"):
            line[f"- {other}"] = interval(mine["both"] - work.values("presence", other, "both"))
        line["pixel std / plain"] = float(mine["pixel std"].mean() / plain["pixel std"].mean())
        line["clipped"] = float(mine["clipped"].mean())
        line["latent std / plain"] = float(mine["spread"].mean() / plain["spread"].mean())
        lines.append({**line, **work.cost("presence", method)})
    return lines


def relation(work: Work) -> list[dict[str, Any]]:
    """Plain, stage 1, both stages, and the better of two seeds of stage 1."""
    found = {method: work.values("relation", method, "in order") for method in RELATION}
    found |= {name: work.values("relation", "refinement", name) for name in ("refined", "best of 2 seeds")}
    against = {"aligned": "plain", "refined": "best of 2 seeds"}
    lines = []
    for name, values in found.items():
        other = against.get(name)
        line: dict[str, Any] = {"method": name, "relation": float(values.mean()), "against": other or ""}
        line["difference"] = None if other is None else interval(values.mean(1) - found[other].mean(1))
        lines.append(line)
    return lines


def terms(work: Work) -> list[dict[str, Any]]:
    """Each loss at half of the run: plain, and under the steps of this loss alone."""
    lines = []
    for term in TERMS:
        plain, alone = (work.values("terms", method, term) for method in ("plain", term))
        change = interval(alone - plain)
        lines.append({"loss": term, "plain": float(plain.mean()), "alone": float(alone.mean()), "change": change})
    return lines


if __name__ == "__main__":
    main(tyro.cli(Compose, description=__doc__))
