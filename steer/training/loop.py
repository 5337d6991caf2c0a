"""The one loop that trains: a loss that draws its own batch, an optimiser, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from steer.training import checkpoint
from steer.training.handle import Handle

Logged = dict[str, float]
Loss = Callable[[Generator, int], tuple[Tensor, Logged]]
"""(generator, step) -> the loss of a batch that it draws from the generator, and numbers to note.

All randomness comes from the generator, and all memory from one step to the next is in `loss.state_dict()`, where a
loss has that and `load_state_dict`: then a run that was stopped goes on bit for bit.
"""


@dataclass(frozen=True)
class Run:
    """How long, and what is common to all methods.

    accumulate  losses that are averaged before each step of the optimiser
    clip        norm to which the whole gradient is cut; None: not at all
    warmup      steps over which the learning rate rises to its own value
    save_every  seconds between checkpoints
    """

    steps: int = 100
    accumulate: int = 1
    clip: float | None = 1.0
    warmup: int = 0
    seed: int = 0
    save_every: float = 120.0

    def __post_init__(self):
        if self.steps < 1 or self.accumulate < 1 or self.warmup < 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(f"{self}: expected steps and accumulate of at least 1, warmup >= 0, clip > 0 or None.")


def fit(
    handle: Handle,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    run: Run = Run(),
    folder: str | Path | None = None,
    until: int | None = None,
    name: str = "train",
) -> list[Logged]:
    """Train what a handle holds; returns what was noted, a row a step.

    folder  of checkpoints: a run that finds its own there goes on from it, bit for bit on a CPU
    until   stop after that many steps, with a checkpoint

    Raises ValueError where the loss is not finite, for a checkpoint of a run with other settings, and for checkpoints
    that are all damaged; and torch's OutOfMemoryError with the dials that need less.
    """
    where = None if folder is None else Path(folder)
    state = _State(handle, loss, optimiser, run)
    if where is not None and (found := checkpoint.load(where)) is not None:
        state.load(found, where)
    saved, end = time.monotonic(), run.steps if until is None else min(until, run.steps)
    with tqdm(total=run.steps, initial=state.step, desc=name, mininterval=1, leave=False) as bar:
        while state.step < end:
            state.log.append(state.update())
            bar.set_postfix(loss=f"{state.log[-1]['loss']:.4g}", refresh=False)
            bar.update()
            if where is not None and time.monotonic() - saved > run.save_every:
                checkpoint.save(where, state.content())
                saved = time.monotonic()
    if where is not None:
        checkpoint.save(where, state.content())
    return state.log


class _State:
    """All that a run needs to go on."""

    def __init__(self, handle: Handle, loss: Loss, optimiser: torch.optim.Optimizer, run: Run):
        self.handle, self.loss, self.optimiser, self.run = handle, loss, optimiser, run
        self.generator, self.step = Generator().manual_seed(run.seed), 0
        self.rates = [group["lr"] for group in optimiser.param_groups]
        self.log: list[Logged] = []

    def update(self) -> Logged:
        """One step of the optimiser, which may call the closure again, on the same batch; what the last call noted."""
        began, rows, here = time.perf_counter(), [], self.generator.get_state()
        for group, rate in zip(self.optimiser.param_groups, self.rates):
            group["lr"] = rate * min(1.0, (self.step + 1) / (self.run.warmup + 1))

        def closure() -> Tensor:
            rows.clear()
            self.generator.set_state(here)
            self.optimiser.zero_grad(set_to_none=True)
            for _ in range(self.run.accumulate):
                rows.append(self._backward())
            if self.run.clip is not None:
                nn.utils.clip_grad_norm_(list(self.handle.parameters.values()), self.run.clip)
            return torch.tensor([row["loss"] for row in rows]).mean()

        self.optimiser.step(closure)  # type: ignore
        self.step += 1
        means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        return {"step": self.step, **means, "seconds": time.perf_counter() - began}

    def _backward(self) -> Logged:
        try:
            value, noted = self.loss(self.generator, self.step)
            if not math.isfinite(number := value.item()):
                raise ValueError(f"the loss became {number} at step {self.step}; lower the learning rate, and resume.")
            if value.requires_grad and torch.is_grad_enabled():
                (value / self.run.accumulate).backward()
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"{error} Less memory is needed with a smaller batch (and more `accumulate`), with checkpointing, and "
                "with fewer steps that carry a gradient."
            ) from error
        return {"loss": number, **noted}

    def content(self) -> dict[str, Any]:
        remembered = self.loss.state_dict() if hasattr(self.loss, "state_dict") else {}
        return {
            "run": asdict(self.run),
            "weights": self.handle.weights(),
            "start": self.handle.start,
            "optimiser": self.optimiser.state_dict(),
            "loss": remembered,
            "generator": self.generator.get_state(),
            "step": self.step,
            "log": self.log,
        }

    def load(self, content: dict[str, Any], folder: Path) -> None:
        """Raises ValueError unless the checkpoint is of the same run."""
        same = {key: value for key, value in asdict(self.run).items() if key not in ("steps", "save_every")}
        other = {key: value for key, value in content["run"].items() if key in same and value != same[key]}
        if other:
            raise ValueError(f"{folder} holds a run with {other}, and this one has others; choose another folder.")
        self.handle.load(content["weights"])
        self.handle.start = content["start"]
        self.optimiser.load_state_dict(content["optimiser"])
        if hasattr(self.loss, "load_state_dict"):
            self.loss.load_state_dict(content["loss"])
        self.generator.set_state(content["generator"])
        self.step, self.log = content["step"], content["log"]
