"""Does it steer? GrAInS beside other directions at matched perplexity, SmolLM2, persona files. A study, not a check.

    python -m benchmarks.persona --judged bfloat16 --only interest-in-art 0 --methods caa random prompt
                                              one file, one seed, what needs no attribution: 5 minutes on one core
    python -m benchmarks.persona              all of it: hours; it resumes where it stopped
    python -m benchmarks.persona --small      a few minutes

Three disjoint parts of a file, with statements of both kinds in equal numbers: steering pairs (others for each seed),
validation pairs, held-out pairs. By default a pair is two statements (`benchmarks.forms`, "said"), and its margin that
of whole responses, length-normalised. Each method's layer and strength are those with the largest change of the mean
margin on the validation pairs, among those that raise the perplexity of neutral texts by at most 5 %; then, once, the
held-out pairs and the perplexity of other texts. Attention sinks are exempt. With it -v, and the antisymmetric effect
[m(+v) - m(-v)] / 2. Intervals are over held-out pairs, the mean over seeds of each: paired bootstrap, 95 %. Writes one
row a setting to OUT/results.jsonl, and benchmarks/results/persona.json.

    grains         PCA, read at the prompt's last token, as published; grains-mean: mean, at the responses' last token
    occlusion      the same two steps with occlusion in the place of gradients
    random-masks   as many tokens, drawn; random: a direction drawn
    caa, pca, probe, iti    from the states of both responses
    prompt         an instruction in front of the prompt; -v is the opposite one
    best-of-n      the best of 4 draws of one of the two responses, in closed form; its reward sees no label: it is
                   what the instruction adds to the margin beside the opposite one, and -v is the worst
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

import steer
from benchmarks.forms import Form, parts_of
from benchmarks.output import part_of, tabulate, write
from benchmarks.persona_methods import METHODS, Setting, Study, judged, perplexity_of, settings, steered
from steer.cli import record, show
from steer.measure import interval


@dataclass(frozen=True)
class Persona:
    """How much of it."""

    only: tuple[str, int] | None = None
    """a persona file and a seed"""
    data: Path = Path("../shared/data")
    personas: tuple[str, ...] = ("interest-in-art", "extraversion")
    form: Form = "said"
    """how their statements are put to the model: `benchmarks.forms`"""
    methods: tuple[str, ...] = tuple(METHODS)
    layers: tuple[int, ...] = (12, 15)
    strengths: tuple[float, ...] = (0.05, 0.1, 0.15)
    alphas: tuple[float, ...] = (1.0, 2.0, 4.0)
    """strengths of ITI, in its own unit"""
    heads: int = 48
    """of ITI"""
    k: int = 5
    points: tuple[int, ...] = (20,)
    """of integrated gradients, as in the paper's code; more that triple are taken where the gap is above 5 %"""
    fitted: int = 64
    validated: int = 100
    held_out: int = 200
    seeds: int = 3
    judged: Literal["float32", "bfloat16"] = "float32"
    """what the model computes in while it is judged; vectors are made in float32"""
    cap: float = 1.05
    """the most by which perplexity may be multiplied"""
    small: bool = False
    """8, 8 and 8 pairs, one seed, one layer, two strengths, one file"""
    out: Path = Path("steer-out/bench-persona")
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table goes between its `<!-- python -m benchmarks.persona -->` and the end of that"""

    @property
    def sized(self) -> Persona:
        few = {"fitted": 8, "validated": 8, "held_out": 8, "seeds": 1, "layers": (12,), "strengths": (0.1, 0.2)}
        return replace(self, **few, alphas=(2.0,), personas=self.personas[:1]) if self.small else self

    @property
    def base(self) -> dict[str, Any]:
        """What rows that are resumed must have been made with."""
        same = ("form", "k", "points", "fitted", "validated", "held_out", "heads", "judged", "small")
        return {name: value for name, value in json.loads(json.dumps(record.config(self))).items() if name in same}

    @property
    def cells(self) -> list[tuple[str, int]]:
        every = [(name, seed) for seed in range(self.seeds) for name in self.personas]
        return every if self.only is None else [self.only]


def main(bench: Persona) -> None:
    """Run what is missing, then write the table of all that is there."""
    asked = bench.sized
    record.folder(asked.results)
    page, rows = part_of(asked), record.Rows(record.folder(asked.out) / "results.jsonl")
    model, tokenizer = steer.load("smollm2")
    with show.bars() as bars:
        task = bars.add_task("studies", total=len(asked.cells) * len(asked.methods))
        for name, seed in asked.cells:
            study = study_of(asked, model, tokenizer, name, seed)
            for method in asked.methods:
                fill(asked, study, method, rows, {"data": name, "seed": seed, "method": method, **asked.base})
                bars.advance(task)
    lines = table(rows.find(what="held out", **asked.base), asked.cap)
    if lines:
        tabulate(lines, "change of the held-out margin, nats; 95 % intervals", page)
    write(asked, {"table": lines})


def study_of(bench: Persona, model: Any, tokenizer: Any, name: str, seed: int) -> Study:
    """The parts of a file; those that judge are the same for all seeds. Raises ValueError for a seed that is none."""
    if not 0 <= seed < bench.seeds:
        raise ValueError(f"seed {seed}: expected 0 to {bench.seeds - 1}, or more --seeds.")
    sizes = (bench.validated, bench.held_out, *[bench.fitted] * bench.seeds)
    validation, held_out, *own = parts_of(bench.data / "persona" / f"{name}.jsonl", bench.form, sizes)
    how = {key: getattr(bench, key) for key in ("form", "k", "points", "heads", "judged")}
    return Study(model, tokenizer, name, seed, own[seed], validation, held_out, **how)


def fill(bench: Persona, study: Study, method: str, rows: record.Rows, cell: dict[str, Any]) -> None:
    """Every setting on the validation pairs, then the chosen one on those held out."""
    if rows.find(what="held out", **cell):
        return
    plain, found = study.plain, []  # before anything is steered
    for setting in settings(method, bench.layers, bench.strengths, bench.alphas):
        key = {**cell, "what": "validation", "layer": setting.layer, "strength": setting.strength}
        if not rows.find(**key):
            with steered(study, method, setting):
                change = judged(study, method, study.validation) - plain.validation
                ratio = perplexity_of(study, "choice") / plain.perplexity["choice"]
            rows.add({**key, "change": float(change.mean()), "perplexity": ratio, **record.origin()})
        found += rows.find(**key)
    best = chosen(found, bench.cap)
    setting = Setting(best["layer"], best["strength"])
    values = {"plain": plain.held_out}
    for sign, name in ((1, "+"), (-1, "-")):
        with steered(study, method, replace(setting, strength=sign * setting.strength)):
            values[name] = judged(study, method, study.held_out, sign)
            values[f"perplexity{name}"] = torch.tensor(perplexity_of(study, "report") / plain.perplexity["report"])
    kept = {name: [round(v, 5) for v in part.tolist()] if part.ndim else float(part) for name, part in values.items()}
    key = {**cell, "what": "held out", "layer": setting.layer, "strength": setting.strength}
    about = {"within": best["perplexity"] <= bench.cap, "gap": study.gap(method)}
    rows.add({**key, **about, **kept, **record.origin()})


def chosen(found: Sequence[dict[str, Any]], cap: float) -> dict[str, Any]:
    """The largest change under the cap; where no setting is under it, the least perplexity."""
    under = [row for row in found if row["perplexity"] <= cap]
    return max(under, key=lambda row: row["change"]) if under else min(found, key=lambda row: row["perplexity"])


def table(rows: Sequence[dict[str, Any]], cap: float) -> list[dict[str, Any]]:
    """One line a file and method: changes of the held-out margin by +v and by -v, half their difference, perplexity."""
    lines = []
    for name, method in dict.fromkeys((row["data"], row["method"]) for row in rows):
        own = [row for row in rows if (row["data"], row["method"]) == (name, method)]
        plain, up, down = (torch.tensor([row[key] for row in own]).mean(0) for key in ("plain", "+", "-"))
        lines.append(
            {"data": name, "method": method, "seeds": len(own), "layer": [row["layer"] for row in own]}
            | {"strength": [row["strength"] for row in own], "m(+v) - m": interval(up - plain)}
            | {"m(-v) - m": interval(down - plain), "[m(+v) - m(-v)] / 2": interval((up - down) / 2)}
            | {"perplexity x": float(torch.tensor([row["perplexity+"] for row in own]).mean())}
            | {f"chosen under {cap:g}": all(row["within"] for row in own), "median gap": [row["gap"] for row in own]}
        )
    return lines


if __name__ == "__main__":
    main(tyro.cli(Persona, description=__doc__))
