"""CoDe that looks before it moves against the published order: the same choices, and the ratio of times.

    python -m benchmarks.order

Both see the same noise and the same reward on emoji-sd. `Darkness of x0` looks at latents and is nearly free, so that
what is compared is the network's share; `compressibility` also decodes every candidate at every look, which costs both
orders the same. Writes benchmarks/results/order.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

import steer
from benchmarks.output import part_of, tabulate, write
from benchmarks.timing import alternating, ratio
from steer.bench.published import code_as_published
from steer.cli import record
from steer.diffusion.loop import finished
from steer.diffusion.state import State
from steer.rewards import Reward


@dataclass(frozen=True)
class Darkness(Reward):
    """Minus the mean of the latents."""

    needs_decode = False

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return -images.flatten(1).mean(1)


REWARDS = {"darkness of x0": Darkness(), "compressibility": steer.rewards.Compressibility()}


@dataclass(frozen=True)
class Order:
    """n particles of one prompt at several block lengths, both orders by turns."""

    n: int = 8
    steps: int = 20
    blocks: tuple[int, ...] = (1, 5)
    guidance: float = 3.0
    rounds: int = 9
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table goes between its `<!-- python -m benchmarks.order -->` and the end of that"""


def orders(bench: Order, denoiser: object, reward: Reward, block: int) -> dict[str, Callable[[], State]]:
    """Name -> a run of CoDe from the same seed."""
    d, decode = denoiser, denoiser.decode if reward.needs_decode else None
    same = {"n": bench.n, "prompts": d.prompts, "cond": d.cond, "decode": decode}

    def ours() -> State:
        seed = torch.Generator().manual_seed(0)
        search = steer.code(reward, block)
        with torch.no_grad():
            return finished(steer.sample(d, d.shape, d.schedule, search, generator=seed, **same))

    def published() -> State:
        seed = torch.Generator().manual_seed(0)
        return code_as_published(d, d.shape, d.schedule, reward, block=block, generator=seed, **same)

    return {"ours": ours, "published": published}


def main(bench: Order) -> None:
    """Measure, print and write."""
    record.folder(bench.results)
    part = part_of(bench)
    pipe = steer.load("emoji")
    denoiser = steer.denoiser_of(pipe, ["a red apple"], num_inference_steps=bench.steps, guidance_scale=bench.guidance)
    calls, table = {}, []
    for name, reward in REWARDS.items():
        for block in bench.blocks:
            calls |= {(name, block, order): run for order, run in orders(bench, denoiser, reward, block).items()}
    times = alternating(calls, bench.rounds)
    for name in REWARDS:
        for block in bench.blocks:
            ours, theirs = (calls[name, block, order]() for order in ("ours", "published"))
            table.append(
                {
                    "reward": name,
                    "block": block,
                    "same choices": all(torch.equal(a.index, b.index) for a, b in zip(ours.trace, theirs.trace)),
                    "rows": [ours.run.ledger.rows, theirs.run.ledger.rows],
                    **ratio(times[name, block, "published"], times[name, block, "ours"]),
                }
            )
    tabulate(table, "published / ours, seconds", part)
    write(bench, {"table": table})


if __name__ == "__main__":
    main(tyro.cli(Order, description=__doc__))
