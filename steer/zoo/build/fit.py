"""The one training loop of the embedded world: AdamW, warm-up and linear decay over a budget, EMA, exact resume."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

Net = TypeVar("Net", bound=nn.Module)
Loss = Callable[[nn.Module, torch.Generator, float], Tensor]


@dataclass(frozen=True)
class Fit:
    """How long and how fast: a budget in `minutes` of training time, or in `steps` when that is given."""

    minutes: float = 5.0
    steps: int | None = None
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float = 0.02
    ema: float = 0.998
    clip: float = 1.0
    seed: int = 0
    save_every: float = 180.0

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is used up, in [0, 1]."""
        return min(step / self.steps if self.steps else seconds / (60 * self.minutes), 1.0)

    def rate(self, progress: float) -> float:
        """lr * min(progress / warmup, (1 - progress) / (1 - warmup)): linear up, linear down to zero."""
        return self.lr * max(min(progress / self.warmup, (1 - progress) / (1 - self.warmup)), 1e-4)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn inside depends on `seed` alone; the global generator goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class State:
    """Everything a run needs to go on bit for bit: weights, EMA, optimiser, generator, step and seconds spent."""

    def __init__(self, model: nn.Module, config: Fit):
        self.model, self.config = model, config
        self.average: Any = copy.deepcopy(model).requires_grad_(False)  # of the class of `model`
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            trained, config.lr, (0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step, self.seconds = 0, 0.0

    def save(self, path: Path) -> None:
        """Write atomically: a killed run leaves the previous checkpoint whole."""
        content = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save(content, part)
        os.replace(part, path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote."""
        content: Any = torch.load(path, weights_only=True)
        self.model.load_state_dict(content["model"])
        self.average.load_state_dict(content["average"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.generator.set_state(content["generator"])
        self.step, self.seconds = content["step"], content["seconds"]

    @torch.no_grad()
    def follow(self) -> None:
        """average <- d average + (1 - d) weights with d = min(ema, (1 + step) / (10 + step)); buffers are copied."""
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for ours, theirs in zip(self.average.parameters(), self.model.parameters(), strict=True):
            ours.lerp_(theirs, 1 - decay)
        for ours, theirs in zip(self.average.buffers(), self.model.buffers(), strict=True):
            ours.copy_(theirs)


def restored(name: str, model: Net, cache: Path) -> Net:
    """The averaged weights of a stage's checkpoint. Raises ValueError when the stage has not been run."""
    path = Path(cache) / f"{name}.pt"
    if not path.exists():
        raise ValueError(f"stage {name} has left nothing in {cache}; run `steer world build` from its first stage on.")
    content: Any = torch.load(path, weights_only=True)
    model.load_state_dict(content["average"])
    return model.eval()


def update(state: State, loss: Loss, progress: float) -> float:
    """One optimiser step at `progress`; returns the loss, and raises when it is not finite."""
    for group in state.optimiser.param_groups:
        group["lr"] = state.config.rate(progress)
    state.optimiser.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):  # twice as fast here; losses are taken in float32
        value = loss(state.model, state.generator, progress)
    value.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), state.config.clip)
    state.optimiser.step()
    state.step += 1
    state.follow()
    if not math.isfinite(number := value.item()):
        raise ValueError(f"the loss became {number} at step {state.step}; lower lr (now {state.config.lr}) and resume")
    return number


def fit(name: str, model: Net, loss: Loss, config: Fit, cache: Path, until: int | None = None) -> Net:
    """Train `model` to the end of its budget, from the last checkpoint in `cache` if there is one; return its EMA.

    `loss(model, generator, progress)` draws its own batch. `until` stops after that many steps, with a checkpoint.
    """
    state, path = State(model, config), Path(cache) / f"{name}.pt"
    if path.exists():
        state.load(path)
    smooth, saved = None, time.monotonic()
    with tqdm(
        total=1.0, desc=name, mininterval=10, miniters=0, bar_format="{desc} {percentage:3.0f}% {elapsed} {postfix}"
    ) as bar:
        while (progress := config.progress(state.step, state.seconds)) < 1 and state.step != until:
            begun = time.monotonic()
            value = update(state, loss, progress)
            smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
            now = time.monotonic()
            state.seconds += now - begun
            bar.set_postfix_str(f"step {state.step} loss {smooth:.4f} {now - begun:.2f} s", refresh=False)
            bar.update(progress - bar.n)
            if now - saved > config.save_every:
                state.save(path)
                saved = now
    state.save(path)
    return state.average.eval()
