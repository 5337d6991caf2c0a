"""What `attach` adds to the plain pipeline with the same batch: the ratio of alternating runs in one process.

    python -m benchmarks.overhead

The reward is free and looks at latents, so that all that is measured is the machinery: noise per particle, the border,
looks and gathers. Writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

import steer
from benchmarks.output import write
from benchmarks.timing import alternating, ratio
from steer.cli import record, show
from steer.rewards import Reward


@dataclass(frozen=True)
class Free(Reward):
    """Zero for everything."""

    needs_decode = False

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.new_zeros(len(images))


@dataclass(frozen=True)
class Overhead:
    """n particles of one prompt for some steps, plain and attached by turns."""

    n: int = 8
    steps: int = 10
    block: int = 5
    rounds: int = 31
    results: Path = Path("benchmarks/results")


def main(bench: Overhead) -> None:
    """Measure, print and write."""
    record.folder(bench.results)
    pipe = steer.load("emoji")
    pipe.set_progress_bar_config(disable=True)
    search = steer.code(Free(), bench.block, common_start=False)
    settings = {"num_images_per_prompt": bench.n, "num_inference_steps": bench.steps, "output_type": "latent"}

    def plain() -> object:
        return pipe("a fox", generator=torch.Generator().manual_seed(0), **settings)

    def attached() -> object:
        with steer.attach(pipe, search, n=bench.n):
            return plain()

    times = alternating({"plain": plain, "attached": attached}, bench.rounds)
    found = ratio(times["attached"], times["plain"])
    low, high = found["quartiles"]
    show.console.print(
        f"attached / plain = {found['ratio']:.3f}, quartiles {low:.3f} to {high:.3f}, of {bench.rounds} rounds"
    )
    write(bench, {"plain seconds": statistics.median(times["plain"]), **found})


if __name__ == "__main__":
    main(tyro.cli(Overhead, description=__doc__))
