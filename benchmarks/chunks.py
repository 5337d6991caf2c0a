"""What `chunk` costs and saves: 16 candidates of one picture, a few of them at a time in network and decoder.

    python -m benchmarks.chunks

Alternating runs on emoji-sd for seconds, and a process of its own for each chunk for the greatest memory above what it
held before: one that has run before keeps what it was given. Writes benchmarks/results/chunks.json.
"""

from __future__ import annotations

import functools
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import steer
from benchmarks.output import part_of, tabulate, write
from benchmarks.timing import alternating
from steer.bench.cells import Peak
from steer.cli import record
from steer.diffusion.pipelines.results import SteeredOutput


@dataclass(frozen=True)
class Chunks:
    """CoDe for compressibility with n particles, at most `chunk` of them in a call."""

    n: int = 16
    chunks: tuple[int, ...] = (1, 2, 4, 8, 16)
    steps: int = 20
    block: int = 5
    rounds: int = 3
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table goes between its `<!-- python -m benchmarks.chunks -->` and the end of that"""


def search_of(bench: Chunks) -> Callable[..., SteeredOutput]:
    """(chunk, n) -> the result of the search."""
    pipe = steer.load("emoji")
    pipe.set_progress_bar_config(disable=True)
    search = steer.code(steer.rewards.Compressibility(), bench.block)

    def run(chunk: int, n: int = bench.n) -> SteeredOutput:
        generator = torch.Generator().manual_seed(0)
        steered = steer.Steered(pipe, search, chunk=chunk)
        return steered("a red apple", n, num_inference_steps=bench.steps, generator=generator, output_type="pt")

    return run


def memory(bench: Chunks, chunk: int) -> int | None:
    """MB at the peak of a search above what a process holds that has run one of a single particle."""
    run = search_of(bench)
    run(1, n=1)
    before, peak = Peak("cpu").megabytes(), Peak("cpu")
    run(chunk)
    after = peak.megabytes()
    return None if before is None or after is None else round(after - before)


def main(bench: Chunks) -> None:
    """Measure, print and write."""
    record.folder(bench.results)
    part = part_of(bench)
    run = search_of(bench)
    times = alternating({chunk: functools.partial(run, chunk) for chunk in bench.chunks}, bench.rounds)
    table, whole = [], run(bench.n)
    for chunk, seconds in times.items():
        out = run(chunk)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peak = pool.submit(memory, bench, chunk).result()
        table.append(
            {
                "chunk": chunk,
                "same choices": torch.equal(out.lineage, whole.lineage),
                "pixels differ by": float((out.images - whole.images).abs().max()),
                "rows a second": round(out.ledger.rows / statistics.median(seconds)),
                "peak MB": peak,
            }
        )
    tabulate(table, f"{bench.n} candidates in chunks", part)
    write(bench, {"table": table})


if __name__ == "__main__":
    main(tyro.cli(Chunks, description=__doc__))
