"""When a search looks: a function (step, steps) -> whether to look there, which every search does at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.diffusion.state import State
from steer.pick import ess

When = Callable[[int, int], bool]


@dataclass(frozen=True)
class Every:
    """Look when a block of so many steps has ended, and at the end; `block=None`: only at the end."""

    block: int | None = None

    def __call__(self, i: int, steps: int) -> bool:
        return i == steps or (self.block is not None and i > 0 and i % self.block == 0)

    def check(self, steps: int) -> None:
        if self.block is not None and not 1 <= self.block <= steps:
            raise ValueError(
                f"block = {self.block} in a run of {steps} steps: expected 1 <= block <= steps; "
                "block = steps is best-of-n from a common start."
            )

    def looks(self, steps: int) -> int | None:
        """How many looks come before the end; None where that cannot be known ahead."""
        return sum(self(i, steps) for i in range(steps))


@dataclass(frozen=True)
class Adaptive(Every):
    """Look again after `block` steps where the last look had something to say, else after twice as long as before.

    A look had nothing to say when its weights were nearly even, an effective sample size of at least `ess` n: what was
    seen then could not tell the particles apart, and a choice would have followed noise. The waits grow to at most
    `longest` steps and fall back to `block` at the first look that tells. Between T / longest and T / block looks, and
    as many fewer decodes and reward calls. When to look next follows from looks that are paid for, so the weights of
    `FeynmanKac` and `Tempered` stay exact. The prompts of one call look together: one that tells keeps all awake.

    Raises ValueError unless 1 <= block <= longest and 0 < ess <= 1.
    """

    block: int = 1
    longest: int = 8
    ess: float = 0.5

    def __post_init__(self):
        if not (1 <= self.block <= self.longest and 0 < self.ess <= 1):
            raise ValueError(f"{self!r}: expected 1 <= block <= longest and 0 < ess <= 1.")

    def at(self, memory: dict[str, Tensor]) -> When:
        """The rule for the next look, from the step, the wait and the effective share of the last one."""
        if "step" not in memory:
            due = self.block
        else:
            even = bool((memory["share"] >= self.ess).all())
            wait = min(2 * int(memory["wait"][0]), self.longest) if even else self.block
            due = int(memory["step"][0]) + wait
        return lambda i, steps: i == steps or i >= due

    def looks(self, steps: int) -> int | None:
        return None


def live(state: State) -> Tensor:
    """(P, n): the slots that speak for themselves."""
    return state.grouped(state.alias == torch.arange(len(state.alias)))


def facts(scores: Tensor, logw: Tensor, seen: State) -> dict[str, Tensor]:
    """What later looks may want to know of this one: (P n,) each, as all that a gather takes along.

    step, wait   when it was, and how many steps after the one before
    share        effective sample size of its weights, as a share of the live particles
    looks        how many there have been;  scored: how many particles were scored in them
    score        of every particle
    """

    def every(value: float | Tensor) -> Tensor:
        return (torch.as_tensor(value, dtype=torch.float32) * torch.ones_like(scores)).flatten()

    zero, count = torch.zeros_like(seen.logw), live(seen).sum(-1, keepdim=True)
    return {
        "step": every(seen.i),
        "wait": seen.i - seen.memory.get("step", zero),
        "share": every(ess(logw)[:, None] / count),
        "looks": seen.memory.get("looks", zero) + 1,
        "scored": seen.memory.get("scored", zero) + every(count),
        "score": scores.flatten(),
    }
