"""CoDe, best-of-n and plain sampling on emoji-sd at the same number of denoiser rows: the table in the README.

    python -m benchmarks.code                    64 prompts x 4 seeds, about 330,000 rows; resumes where it stopped
    python -m benchmarks.code --prompts 8 --seeds 2 --out steer-out/small

Writes one row a picture to OUT/results.jsonl, and the table with paired bootstrap intervals to benchmarks/results.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor

import steer
from benchmarks.summary import summarise
from steer import measure
from steer.cli import record, show
from steer.compare import Budget, Outcome, run
from steer.rewards import named
from steer.zoo.data import STYLES, caption, captions

REWARDS = ("clip", "compressibility")
CHUNK = 16


@dataclass(frozen=True)
class Bench:
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


def prompts_of(count: int) -> list[str]:
    """Names spread evenly over the data set, every second one with a style."""
    names = [row["name"] for row in captions()]
    chosen = [names[k] for k in torch.linspace(0, len(names) - 1, count).round().long()]
    return [caption(name, STYLES[k // 2 % 4] if k % 2 else None, article=k % 3 == 0) for k, name in enumerate(chosen)]


def outcomes(
    pipe: Any, prompts: list[str], budget: Budget, seed: int, tick: Any
) -> dict[tuple[str, str], Outcome | tuple]:
    """(method, reward) -> pictures and targets; the candidates of best-of-n serve both rewards."""
    found: dict[tuple[str, str], Any] = {}
    for method in ("plain", "best-of-n"):
        outcome = run(pipe, method, named(REWARDS[0]), prompts, budget, seed)
        tick()
        for name in REWARDS:
            found[method, name] = (_chosen(outcome, named(name), prompts), outcome.ledger)
    for name in REWARDS:
        outcome = run(pipe, "code", named(name), prompts, budget, seed)
        found["code", name] = (outcome.pictures, outcome.ledger)
        tick()
    return found


def _chosen(outcome: Outcome, reward: Any, prompts: list[str]) -> Tensor:
    every = outcome.output.candidates.pictures.float()
    n = every.shape[1]
    scores = reward(every.flatten(0, 1), [prompt for prompt in prompts for _ in range(n)]).view(-1, n)
    return every[torch.arange(len(every)), scores.argmax(1)]


def rows_of(found: dict, prompts: list[str], seed: int, base: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a picture; the ledger's counts are a picture's share."""
    rows = []
    for (method, name), (pictures, ledger) in found.items():
        target, judge = named(name)(pictures, prompts).tolist(), measure.judged(pictures, prompts).tolist()
        cost = {key: value / len(prompts) for key, value in asdict(ledger).items()}
        for k, prompt in enumerate(prompts):
            cell = {"method": method, "reward": name, "prompt": prompt, "seed": seed}
            rows.append({**cell, "target": target[k], "judge": judge[k], **cost, **base})
    return rows


def main(bench: Bench) -> None:
    """Run what is missing, then write the table."""
    out, budget = record.folder(bench.out), Budget(bench.n, bench.steps, bench.block, bench.guidance)
    base = {"config": record.config(bench), **record.origin()}
    prompts = prompts_of(bench.prompts)
    results = record.Rows(out / "results.jsonl")
    pipe = steer.load("emoji").to(dtype=getattr(torch, bench.dtype))
    pipe.set_progress_bar_config(disable=True)
    with show.bars() as bars:
        chunks = [(seed, k) for seed in range(bench.seeds) for k in range(0, len(prompts), CHUNK)]
        task = bars.add_task("benchmark", total=4 * len(chunks))
        for seed, k in chunks:
            part = prompts[k : k + CHUNK]
            if results.find(seed=seed, prompt=part[0]):
                bars.advance(task, 4)
                continue
            found = outcomes(pipe, part, budget, 1000 * seed + k, lambda: bars.advance(task))
            stored = {f"{m}|{r}": (255 * pictures).byte() for (m, r), (pictures, _) in found.items()}
            save_file(stored, out / f"pictures-{seed}-{k}.safetensors")
            results.add(rows_of(found, part, seed, base))
    pictures = [
        [load_file(out / f"pictures-{s}-{k}.safetensors") for k in range(0, len(prompts), CHUNK)]
        for s in range(bench.seeds)
    ]
    content = summarise(results.rows, pictures, bench.seeds)
    record.folder(bench.results)
    (bench.results / "code.json").write_text(json.dumps({**base, "table": content}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
