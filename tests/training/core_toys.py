"""A net, a loss with memory and a run of it, for the tests of the core; as a script, the run in its own process."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from steer.training import Handle, Run, fit, own

RUN = Run(steps=6, accumulate=2, warmup=3, seed=5, save_every=0.0)


def net() -> nn.Sequential:
    """The same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


class Regression:
    """Squared distance of the net to another on drawn points, over a running mean of it: a loss with memory."""

    def __init__(self, model: nn.Module, pause: float = 0.0):
        self.model, self.pause, self.mean = model, pause, torch.ones(())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.goal = nn.Linear(4, 2).requires_grad_(False)

    def __call__(self, generator: Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        time.sleep(self.pause)
        x = torch.randn(3, 4, generator=generator)
        error = (self.model(x) - self.goal(x)).square().mean()
        self.mean = 0.9 * self.mean + 0.1 * error.detach()
        return error / self.mean, {"error": error.item()}

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean = state["mean"]


def trained(
    folder: Path | str | None = None,
    until: int | None = None,
    run: Run = RUN,
    optim: Any = torch.optim.AdamW,
    loss: Any = Regression,
) -> tuple[Handle, list[dict[str, float]]]:
    """A run from a fresh net, or from the checkpoint in a folder: the handle, and the log without its seconds."""
    handle = own(net())
    log = fit(handle, loss(handle.model), optim(list(handle.parameters.values()), lr=0.05), run, folder, until)
    return handle, [{key: value for key, value in row.items() if key != "seconds"} for row in log]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


if __name__ == "__main__":
    trained(sys.argv[1], loss=lambda model: Regression(model, pause=0.1))
