"""CoDe, best-of-n and plain sampling on emoji-sd at the same number of denoiser rows: the table in the README.

    python -m benchmarks.code                    64 prompts x 4 seeds, about 200,000 rows; resumes where it stopped
    python -m benchmarks.code --prompts 8 --seeds 2 --out steer-out/small

Writes one row a picture to OUT/results.jsonl, and the table with paired bootstrap intervals to benchmarks/results.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor

import steer
from benchmarks.output import part_of, tabulate, write
from benchmarks.summary import COLUMNS, summarise
from steer.cli import record, show
from steer.compare import METHODS, Budget, run, score
from steer.diffusion.ledger import Ledger
from steer.rewards import Judge, named
from steer.zoo.data import STYLES, caption, captions

REWARDS = ("clip", "compressibility")
CELL = ("method", "reward", "prompt", "seed")
SAME = ("prompts", "n", "steps", "block", "guidance", "dtype")
CHUNK = 16


class Made(NamedTuple):
    """Pictures (prompts, kept, 3, h, w), their target rewards (prompts, kept) and the cost of all."""

    pictures: Tensor
    target: Tensor
    ledger: Ledger


@dataclass(frozen=True)
class Code:
    """Same prompts, same noise for particle 0, same rows; every second prompt names an art style."""

    prompts: int = 64
    seeds: int = 4
    n: int = 8
    steps: int = 16
    block: int = 4
    guidance: float = 3.0
    dtype: str = "bfloat16"
    """of the network: twice as fast as float32 here, and alike for all methods"""
    out: Path = Path("steer-out/bench-code")
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table goes between its `<!-- python -m benchmarks.code -->` and the end of that"""


def prompts_of(count: int) -> list[str]:
    """Names spread evenly over the data set, every second one with a style."""
    names = [row["name"] for row in captions()]
    chosen = [names[k] for k in torch.linspace(0, len(names) - 1, count).round().long()]
    return [caption(name, STYLES[k // 2 % 4] if k % 2 else None, article=k % 3 == 0) for k, name in enumerate(chosen)]


def chunks_of(bench: Code, prompts: list[str]) -> dict[tuple[int, int], list[str]]:
    """(seed, first prompt) -> the prompts of one call."""
    return {(s, k): prompts[k : k + CHUNK] for s in range(bench.seeds) for k in range(0, len(prompts), CHUNK)}


def outcomes(pipe: Any, prompts: list[str], budget: Budget, seed: int, tick: Any) -> dict[tuple[str, str], Made]:
    """(method, reward) -> what it made. Plain sampling's n pictures are the candidates of best-of-n, for any reward."""
    plain = run(pipe, "plain", named(REWARDS[0]), prompts, budget, seed)
    tick()
    found: dict[tuple[str, str], Made] = {}
    for name in REWARDS:
        found["plain", name] = Made(plain.pictures, score(named(name), plain.pictures, prompts), plain.ledger)
        best = found["plain", name].target.argmax(1, keepdim=True)
        every = torch.arange(len(prompts))[:, None]
        found["best-of-n", name] = Made(
            plain.pictures[every, best], found["plain", name].target[every, best], plain.ledger
        )
        code = run(pipe, "code", named(name), prompts, budget, seed)
        found["code", name] = Made(code.pictures, code.target, code.ledger)
        tick()
    return found


def rows_of(found: dict[tuple[str, str], Made], prompts: list[str], seed: int, base: dict) -> list[dict[str, Any]]:
    """One row a prompt, the mean over the pictures that the method keeps; the ledger's counts are a prompt's share."""
    rows = []
    for (method, name), made in found.items():
        judge = score(Judge(), made.pictures, prompts).mean(1).tolist()
        cost = {key: value / len(prompts) for key, value in asdict(made.ledger).items()}
        for k, prompt in enumerate(prompts):
            cell = dict(zip(CELL, (method, name, prompt, seed), strict=True))
            rows.append({**cell, "target": float(made.target[k].mean()), "judge": judge[k], **cost, **base})
    return rows


def fill(bench: Code, prompts: list[str], results: record.Rows) -> None:
    """Run what is missing. Raises ValueError for rows that other options have made."""
    base = {"config": record.config(bench), **record.origin()}
    for name in SAME:
        if (seen := {row["config"][name] for row in results.rows}) - {base["config"][name]}:
            raise ValueError(f"{results.path} was made with {name} {seen}: give the same, or another --out.")
    budget = Budget(bench.n, bench.steps, bench.block, bench.guidance)
    pipe = steer.load("emoji").to(dtype=getattr(torch, bench.dtype))
    pipe.set_progress_bar_config(disable=True)
    with show.bars() as bars:
        chunks = chunks_of(bench, prompts)
        task = bars.add_task("benchmark", total=3 * len(chunks))
        for (seed, k), some in chunks.items():
            done = [row for row in results.rows if row["seed"] == seed and row["prompt"] in some]
            if len(done) == len(METHODS) * len(REWARDS) * len(some):
                bars.advance(task, 3)
                continue
            found = outcomes(pipe, some, budget, 1000 * seed + k, lambda: bars.advance(task))
            stored = {f"{m}|{r}": (255 * made.pictures[:, 0]).byte() for (m, r), made in found.items()}
            save_file(stored, bench.out / f"pictures-{seed}-{k}.safetensors")
            for row in rows_of(found, some, seed, base):
                if not results.find(**{name: row[name] for name in CELL}):  # a killed run may have written some
                    results.add(row)


def main(bench: Code) -> None:
    """Run what is missing, then write the table."""
    record.folder(bench.results)
    part, prompts = part_of(bench), prompts_of(bench.prompts)
    results = record.Rows(record.folder(bench.out) / "results.jsonl")
    fill(bench, prompts, results)
    pictures = [
        [load_file(bench.out / f"pictures-{s}-{k}.safetensors") for s, k in chunks_of(bench, prompts) if s == seed]
        for seed in range(bench.seeds)
    ]
    table = summarise([row for row in results.rows if row["seed"] < bench.seeds], pictures)
    shown = [{name: entry[name] for name in COLUMNS} for entry in table]
    tabulate(shown, "emoji-sd at equal denoiser rows; 95 % intervals", part)
    write(bench, {"table": table})


if __name__ == "__main__":
    main(tyro.cli(Code, description=__doc__))
