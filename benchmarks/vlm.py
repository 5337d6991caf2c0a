"""Does emoji-vlm look where the object is, and can its false Yes be steered away? Held-out scenes of two objects.

    python -m benchmarks.vlm --part tokens     which image tokens matter
    python -m benchmarks.vlm --part yes        what steering does to false Yes
    python -m benchmarks.vlm --small           both, on a few pictures

SmolLM2 is run in bfloat16, the eyes in float32, as they were trained. A margin is log p(Yes) - log p(No) of "Is there a
fox in the picture?". Rows go to OUT/results.jsonl as they come, so that a killed run resumes; tables to
benchmarks/results/vlm.json. Intervals are over pictures: paired bootstrap, 95 %.

    tokens  the half of the picture in which the object is: its share of what pushes towards Yes, by occlusion and by
            integrated gradients; and how far the margin falls when the k most pushing of 16 image tokens are masked,
            against k drawn ones
    yes     of each picture: its two objects, and two that are not there, one of them of the group of the first. Each
            method's layer and strength are those with the fewest Yes to absent objects on the validation pictures,
            among those that lose at most 2 of 100 Yes to present ones; then, once, the held-out pictures. Vectors are
            fitted to right over wrong answers about training scenes, other ones for each seed

    plain          the model; threshold: Yes where the margin is above a constant, which costs nothing
    prompt         an instruction before the question
    vcd            the margin less that of a noised picture (seeds draw the noise)
    vti            from wrong to right captions, all layers of the text tower; the vision tower has no blocks to push
    caa            from the states of both answers
    grains         PCA, at the prompt's last token; grains-mean: mean, at the answers
    random         a direction drawn
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

import steer
from benchmarks.output import part_of, tabulate, write
from benchmarks.vlm_methods import METHODS, SEEDLESS, Setting, Study, answered, settings
from benchmarks.vlm_runs import Asked, asked, looked, unseen
from steer.cli import record, show
from steer.measure import interval
from steer.zoo.vlm import Seeing


@dataclass(frozen=True)
class Vlm:
    """Which part, and how much of it."""

    part: Literal["all", "tokens", "yes"] = "all"
    pictures: int = 60
    """of the image tokens"""
    k: int = 5
    """image tokens that are masked"""
    draws: int = 5
    steps: tuple[int, ...] = (20,)
    """points of integrated gradients"""
    methods: tuple[str, ...] = tuple(METHODS)
    scenes: int = 16
    """that vectors are fitted to, with two pairs each"""
    fit_k: tuple[int, int] = (2, 5)
    """words and image tokens that GrAInS masks"""
    fit_steps: int = 8
    layers: tuple[int, ...] = (9, 15, 21)
    strengths: tuple[float, ...] = (0.1, 0.2, 0.4)
    betas: tuple[float, ...] = (0.5, 1.0, 2.0)
    """of VCD"""
    validated: int = 40
    held_out: int = 80
    seeds: int = 3
    loss: float = 0.02
    """the most by which the share of Yes to present objects may fall"""
    small: bool = False
    """4 pictures of everything, one seed, one layer, one strength"""
    out: Path = Path("steer-out/bench-vlm")
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table of the steering goes between its `<!-- python -m benchmarks.vlm -->` and the end"""

    @property
    def sized(self) -> Vlm:
        few = {name: 4 for name in ("pictures", "scenes", "validated", "held_out")}
        one = {"seeds": 1, "layers": (15,), "strengths": (0.2,), "betas": (1.0,), "steps": (2,), "fit_steps": 2}
        return replace(self, **few, **one) if self.small else self

    @property
    def base(self) -> dict[str, Any]:
        """What rows that are resumed must have been made with."""
        same = ("k", "draws", "steps", "scenes", "fit_k", "fit_steps", "validated", "held_out", "small")
        return {name: value for name, value in json.loads(json.dumps(record.config(self))).items() if name in same}


def main(bench: Vlm) -> None:
    """Run what is missing, then write the tables of all parts that have rows."""
    bench = bench.sized
    record.folder(bench.results)
    page, rows = part_of(bench), record.Rows(record.folder(bench.out) / "results.jsonl")
    seeing = steer.load("emoji-vlm")
    for part in (seeing.model.model.language_model, seeing.model.lm_head):
        part.to(torch.bfloat16)
    every = unseen(bench.pictures + bench.validated + bench.held_out)
    with show.bars() as bars:
        if bench.part != "yes":
            tokens(bench, seeing, every[: bench.pictures], rows, bars)
        if bench.part != "tokens":
            steers(bench, seeing, every[bench.pictures :], rows, bars)
    tables = {"tokens": tokens_table(rows.find(part="tokens", **bench.base))}
    tables["yes"] = yes_table(rows.find(part="yes", what="held out", **bench.base))
    for name, lines in tables.items():
        if lines:
            tabulate(lines, f"{name}: emoji-vlm", page if name == "yes" else None)
    write(bench, {"threads": torch.get_num_threads(), **tables})


def tokens(bench: Vlm, seeing: Seeing, shown: Sequence[Any], rows: record.Rows, bars: Any) -> None:
    task = bars.add_task("tokens", total=len(shown))
    for number, one in enumerate(shown):
        cell = {"part": "tokens", "picture": number, **bench.base}
        if not rows.find(**cell):
            for found in looked(seeing, one, number % 2, bench.k, bench.draws, bench.steps):
                rows.add({**cell, **found, **record.origin()})
        bars.advance(task)


def tokens_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a method."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        keys = ("share", "shuffled", "top", "random", "own half", "other half", "margin")
        value = {key: torch.tensor([row[key] for row in own]) for key in keys}
        gaps = [row["gap"] for row in own if row["gap"] is not None]
        lines.append(
            {"method": method, "pictures": len(own), "median gap": float(torch.tensor(gaps).median()) if gaps else None}
            | {"margin": float(value["margin"].mean()), "share of its half": interval(value["share"])}
            | {"share - shuffled": interval(value["share"] - value["shuffled"])}
            | {"top": float(value["top"].mean()), "random": float(value["random"].mean())}
            | {"top - random": interval(value["top"] - value["random"])}
            | {"top above random": float((value["top"] > value["random"]).float().mean())}
            | {"own half - other half": interval(value["own half"] - value["other half"])}
        )
    return lines


def steers(bench: Vlm, seeing: Seeing, shown: Sequence[Any], rows: record.Rows, bars: Any) -> None:
    validation, held_out = asked(shown[: bench.validated], 0), asked(shown[bench.validated :], 1)
    studies = [Study(seeing, seed, bench.scenes, bench.fit_k, bench.fit_steps) for seed in range(bench.seeds)]
    task = bars.add_task("steering", total=len(bench.methods))
    for method in bench.methods:
        cell = {"part": "yes", "method": method, **bench.base}
        setting = Setting(*chosen_setting(bench, studies[0], validation, rows, cell))
        for study in studies[:1] if method in SEEDLESS else studies:
            key = {**cell, "what": "held out", "seed": study.seed, **setting._asdict()}
            if not rows.find(**key):
                found = answered(study, method, setting, held_out)
                rows.add({**key, "margins": [[round(v, 4) for v in row] for row in found.tolist()], **record.origin()})
        bars.advance(task)


def chosen_setting(
    bench: Vlm, study: Study, given: Asked, rows: record.Rows, cell: dict[str, Any]
) -> tuple[int | None, float]:
    """Every setting on the validation pictures with the first seed's vector, and the one that is best there."""
    plain, found = measured(study.plain(given)), []
    for setting in settings(cell["method"], bench.layers, bench.strengths, bench.betas):
        key = {**cell, "what": "validation", **setting._asdict()}
        if not rows.find(**key):
            value = measured(answered(study, cell["method"], setting, given))
            changes = {name: float((value[name] - plain[name]).mean()) for name in value}
            rows.add({**key, **changes, **record.origin()})
        found += rows.find(**key)
    best = chosen(found, bench.loss)
    return best["layer"], best["strength"]


def chosen(found: Sequence[dict[str, Any]], loss: float) -> dict[str, Any]:
    """The fewest Yes to absent objects where Yes to present ones fall by at most `loss`; else the best on balance."""
    under = [row for row in found if row["present"] >= -loss]
    return min(under, key=lambda row: row["absent"]) if under else max(found, key=lambda row: row["balanced"])


def measured(margins: Tensor) -> dict[str, Tensor]:
    """Shares of each picture, (pictures,), of margins (pictures, 4) in the order of `KINDS`.

    present, near, any, absent  share of Yes; absent: both that are not there
    balanced                    mean of the shares of right answers to present and to absent objects
    auc                         pairs of a present and an absent object that the margins order rightly; a tie is half
    """
    margins = margins.double()
    yes = (margins > 0).double()
    shares = {"present": yes[:, :2].mean(1), "near": yes[:, 2], "any": yes[:, 3], "absent": yes[:, 2:].mean(1)}
    right = (margins[:, :2, None] - margins[:, None, 2:]).sign().mean((1, 2)) / 2 + 0.5
    return {**shares, "balanced": (shares["present"] + 1 - shares["absent"]) / 2, "auc": right}


def yes_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a method: shares of Yes, and paired changes with intervals; of each picture the mean over seeds."""
    every = {method: [row for row in rows if row["method"] == method] for method in METHODS}
    values = {
        method: {
            name: torch.stack([measured(torch.tensor(row["margins"]))[name] for row in own]).mean(0)
            for name in ("present", "near", "any", "absent", "balanced", "auc")
        }
        for method, own in every.items()
        if own
    }
    lines = []
    for method, value in values.items() if "plain" in values else ():
        own = every[method]
        line: dict[str, Any] = {"method": method, "layer": own[0]["layer"], "strength": own[0]["strength"]}
        line |= {f"Yes, {name}": float(value[name].mean()) for name in ("present", "near", "any")}
        line |= {"auc": float(value["auc"].mean())}
        for name in ("present", "absent", "balanced", "auc"):
            change = value[name] - values["plain"][name]
            line[f"{name}, change"] = None if method == "plain" else interval(change)
        lines.append(line)
    return lines


if __name__ == "__main__":
    main(tyro.cli(Vlm, description=__doc__))
