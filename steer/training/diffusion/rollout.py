"""Runs of the sampler that keep a graph through some of their steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from steer.diffusion.solve import noise_scale, transition
from steer.training.diffusion.task import Cond, DiffusionTask

Plan = Callable[[int, Generator], tuple[int, int]]
"""(steps, generator) -> (first, stop): gradients flow from step `first` on; the run ends after step `stop - 1`.

Where that is before the last step, the x0 that was found there is the result.
"""


def full() -> Plan:
    """Through all steps (DRaFT)."""
    return lambda steps, generator: (0, steps)


def last(k: int = 1) -> Plan:
    """Through the last k steps (DRaFT-K). Raises ValueError for k < 1."""
    if k < 1:
        raise ValueError(f"gradient through the last {k} steps: expected at least 1.")
    return lambda steps, generator: (max(0, steps - k), steps)


def from_random() -> Plan:
    """From a uniformly drawn step on, 0 <= first < steps (AlignProp's paper)."""
    return lambda steps, generator: (int(torch.randint(steps, (), generator=generator)), steps)


def around(mean: float = 0.84, spread: float = 0.1) -> Plan:
    """From a step on that is normal around a fraction of them, 1 <= first < steps (AlignProp's code)."""

    def plan(steps: int, generator: Generator) -> tuple[int, int]:
        first = 0
        while steps > 1 and not 1 <= first < steps:
            first = round(steps * (mean + spread * float(torch.randn((), generator=generator))))
        return first, steps

    return plan


def single(start: float = 0.75, stop: float = 1.0) -> Plan:
    """Through one step m, drawn from start <= m / steps < stop, whose x0 is the result (ReFL)."""
    if not 0 <= start < stop <= 1:
        raise ValueError(f"one step between {start} and {stop} of the run: expected 0 <= start < stop <= 1.")

    def plan(steps: int, generator: Generator) -> tuple[int, int]:
        low = min(math.ceil(steps * start - 1e-9), steps - 1)
        m = int(torch.randint(low, max(math.ceil(steps * stop - 1e-9), low + 1), (), generator=generator))
        return m, m + 1

    return plan


class Step(NamedTuple):
    """Step i: where it was, what the network made of it, where it went, and the deviation of the noise it drew."""

    i: int
    x: Tensor
    x0: Tensor
    after: Tensor
    scale: float


def transitions(
    task: DiffusionTask,
    cond: Cond,
    x: Tensor,
    first: int,
    stop: int,
    begin: int = 0,
    eta: float = 0.0,
    generator: Generator | None = None,
    checkpointed: bool = False,
) -> Iterator[Step]:
    """Steps begin ... stop - 1 of the run, x' = alpha' x0 + sqrt(sigma'^2 - w^2) eps + w noise with w = eta k.

    Those before `first` have no graph, and none leads into them.
    """
    for i in range(begin, stop):
        level, to = task.schedule[i], task.schedule[i + 1]
        scale = noise_scale(level, to, eta)
        with torch.set_grad_enabled(i >= first and torch.is_grad_enabled()):
            x0 = task.x0(x, level, cond, checkpointed)
            noise = task.noise(len(x), generator) if scale > 0 else None
            after = transition(x, x0, level, to, scale, noise)
        yield Step(i, x, x0, after, scale)
        x = after


def rollout(task: DiffusionTask, cond: Cond, x: Tensor, first: int, stop: int, **options) -> Tensor:
    """The clean sample of a run, or x0 at its step `stop - 1`; options as for `transitions`."""
    for step in transitions(task, cond, x, first, stop, **options):
        pass
    return step.after if stop == task.steps else step.x0
