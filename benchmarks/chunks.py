"""What `chunk` costs and saves: 16 candidates of one picture, a few of them at a time in network and decoder.

    python -m benchmarks.chunks

Alternating runs on emoji-sd for seconds, and one more of each for the process's greatest memory above what it held
before. Writes benchmarks/results/chunks.json.
"""

from __future__ import annotations

import functools
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

import steer
from benchmarks.timing import alternating
from steer.bench.cells import Peak
from steer.cli import record, show
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


def main(bench: Chunks) -> None:
    """Measure, print and write."""
    record.folder(bench.results)
    pipe = steer.load("emoji")
    pipe.set_progress_bar_config(disable=True)
    search = steer.code(steer.rewards.Compressibility(), bench.block)

    def run(chunk: int) -> SteeredOutput:
        generator = torch.Generator().manual_seed(0)
        steered = steer.Steered(pipe, search, chunk=chunk)
        return steered("a red apple", bench.n, num_inference_steps=bench.steps, generator=generator, output_type="pt")

    times = alternating({chunk: functools.partial(run, chunk) for chunk in bench.chunks}, bench.rounds)
    table, whole = [], run(bench.n)
    for chunk, seconds in times.items():
        before, peak = Peak("cpu").megabytes() or 0.0, Peak("cpu")
        out = run(chunk)
        table.append(
            {
                "chunk": chunk,
                "same choices": torch.equal(out.lineage, whole.lineage),
                "pixels differ by": float((out.images - whole.images).abs().max()),
                "rows a second": round(out.ledger.rows / statistics.median(seconds)),
                "peak MB": round((peak.megabytes() or 0.0) - before),
            }
        )
    columns = list(table[0])
    show.table(f"{bench.n} candidates in chunks", columns, [[str(line[name]) for name in columns] for line in table])
    row = {"config": record.config(bench), **record.origin(), "table": table}
    (bench.results / "chunks.json").write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Chunks, description=__doc__))
