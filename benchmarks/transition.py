"""The stochastic transition of flow models: does noise in every step keep emoji-flow's pictures what they are?

    python -m benchmarks.transition

Plain sampling of the same captions at several dials eta and numbers of steps; eta = 0 is the scheduler's own step.
KID, the judge's CLIP-T and STYLE-ACC against the real pictures of those captions, one value a seed.
Writes benchmarks/results/transition.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

import steer
from benchmarks.output import part_of, tabulate, write
from steer import measure, zoo
from steer.cli import record, show
from steer.rewards import Judge
from steer.zoo.data import STYLES, caption, compose, glyphs


@dataclass(frozen=True)
class Transition:
    """One picture of every `every`-th name in each style."""

    every: int = 5
    etas: tuple[float, ...] = (0.0, 0.5, 1.0)
    steps: tuple[int, ...] = (10, 25)
    guidance: float = 3.0
    seeds: int = 3
    batch: int = 40
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table goes between its `<!-- python -m benchmarks.transition -->` and the end of that"""


def pictures(bench: Transition, prompts: Sequence[str], eta: float, steps: int, seed: int) -> Tensor:
    """(prompts, 3, 64, 64)."""
    pipe = zoo.load("emoji-flow")
    pipe.set_progress_bar_config(disable=True)
    steered, generator = steer.Steered(pipe, (), eta=eta), torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": steps, "guidance_scale": bench.guidance, **zoo.CALLS["emoji-flow"]}
    made = []
    for k in range(0, len(prompts), bench.batch):
        part = list(prompts[k : k + bench.batch])
        made.append(steered(part, n=1, generator=generator, output_type="pt", **options).images.float())
    return torch.cat(made)


def main(bench: Transition) -> None:
    """Measure, print and write."""
    record.folder(bench.results)
    part = part_of(bench)
    every, names, _ = glyphs()
    chosen = range(0, len(names), bench.every)
    pairs = [(style, k) for style in STYLES for k in chosen]
    prompts = [caption(names[k], style) for style, k in pairs]
    styles = [style for style, _ in pairs]
    real = compose(torch.stack([every[STYLES.index(style), k] for style, k in pairs]))
    table = []
    with show.bars() as bars:
        task = bars.add_task("runs", total=len(bench.steps) * len(bench.etas) * bench.seeds)
        for steps in bench.steps:
            for eta in bench.etas:
                line: dict[str, list[float]] = {"KID x1000": [], "judge": [], "STYLE-ACC": []}
                for seed in range(bench.seeds):
                    made = pictures(bench, prompts, eta, steps, seed)
                    line["KID x1000"].append(measure.kid(made, real, paired=True))
                    line["judge"].append(float(Judge()(made, prompts).mean()))
                    line["STYLE-ACC"].append(measure.style_accuracy(made, styles))
                    bars.advance(task)
                table.append({"steps": steps, "eta": eta, **line})
    tabulate(table, f"{len(prompts)} pictures, one value a seed", part)
    write(bench, {"table": table})


if __name__ == "__main__":
    main(tyro.cli(Transition, description=__doc__))
