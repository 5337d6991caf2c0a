"""The one thing that controllers see: a population of particles in the middle of being denoised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from steer.diffusion.ledger import Ledger
from steer.diffusion.noise import ParticleNoise


class Level(NamedTuple):
    """A noise level: x = alpha * x0 + sigma * eps.

    One pair serves every scaling: variance preserving (alpha^2 + sigma^2 = 1), variance exploding (alpha = 1) and
    flow matching (alpha = 1 - sigma). `t` is what the network is told; `progress` runs from 0 (noise) to 1 (clean).
    """

    alpha: float
    sigma: float
    t: float | int | Tensor | None = None
    progress: float = 0.0


class Look(NamedTuple):
    """What one search saw and did: at step i, scores (P, n) and the ancestor of every slot, index (P, n)."""

    i: int
    scores: Tensor
    index: Tensor


@dataclass(frozen=True)
class Run:
    """What stays fixed during a run: n particles for each of the P prompts, the number of steps, a way to pictures.

    schedule  the steps + 1 levels of the run, from noise to clean
    eta       the noise dial of the run's transitions; None if they are not `solve.transition` (Heun, multistep, SDE)
    """

    prompts: tuple[str, ...]
    n: int
    steps: int
    noise: ParticleNoise
    decode: Callable[[Tensor], Tensor] = field(default=lambda x0: x0, repr=False)
    ledger: Ledger = field(default_factory=Ledger)
    schedule: tuple[Level, ...] = field(default=(), repr=False)
    eta: float | None = None


@dataclass(frozen=True)
class State:
    """P * n particles; every tensor is particle-first and the n particles of one prompt are contiguous.

    x        (P n, ...)  noisy particles at `level`
    x0       (P n, ...)  the network's fresh clean estimate of x; None where nobody has evaluated the network yet
    i        transitions taken so far; i == steps means that x is the finished sample
    history  tensors that the solver keeps from earlier steps
    memory   tensors (P n, ...) that controllers keep from earlier looks
    alias    (P n,)      the slot whose noise and fate a pruned slot shares; a live slot names itself
    label    (P n,)      slots with one label hold equal x: the network is evaluated once for all of them
    logw     (P n,)      float32 log-weights; -inf marks a pruned slot
    trace    every look of a search so far
    network  what `denoise` asks; None before the first step and at the finished sample
    """

    x: Tensor
    level: Level
    run: Run
    i: int = 0
    x0: Tensor = None  # until the first prediction
    history: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)
    alias: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    label: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    logw: Tensor = field(default_factory=lambda: torch.empty(0))
    trace: tuple[Look, ...] = ()
    network: Callable[[Tensor, Level, Tensor], Tensor] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def begin(cls, x: Tensor, level: Level, run: Run) -> State:
        """A state at step 0: every slot alive, all weights equal."""
        slots = torch.arange(len(x))
        return cls(x=x, level=level, run=run, alias=slots, label=slots, logw=torch.zeros(len(x)))

    @property
    def n(self) -> int:
        return self.run.n

    @property
    def steps(self) -> int:
        return self.run.steps

    @property
    def finished(self) -> bool:
        return self.i == self.run.steps

    @property
    def to(self) -> Level:
        """The level that the coming transition leads to."""
        return self.run.schedule[self.i + 1]

    def denoise(self, x: Tensor, level: Level) -> Tensor:
        """x0 (P n, ...) by the guided network, all wraps included, at any x (P n, ...) and level; every row is counted.

        Slots of one label that hold equal x are evaluated once. Gradients flow to x; where x asks for them only pruned
        slots share, with the slot that speaks for them, and their own gradient is zero.
        Raises ValueError where there is no network to ask: before the first step and at the finished sample.
        """
        if self.network is None:
            raise ValueError(
                f"step {self.i} of {self.steps}: there is no network to ask before the first step and at the finished "
                "sample; ask it at a look with state.i < state.steps."
            )
        wants_gradient = x.requires_grad and torch.is_grad_enabled()
        return self.network(x, level, self.alias if wants_gradient else self.label)

    def evaluated(self) -> State:
        """This state with x0: asks the network unless somebody has."""
        return self if self.x0 is not None else replace(self, x0=self.denoise(self.x, self.level))

    def grouped(self, values: Tensor) -> Tensor:
        """(P n, ...) -> (P, n, ...)."""
        return values.reshape(-1, self.n, *values.shape[1:])

    def gather(self, index: Tensor, logw: Tensor | None = None) -> State:
        """Slot (p, k) continues particle index[p, k] of the same prompt: x, x0, history and memory together.

        index (P, n) counts within the prompt. logw (P, n) are the weights afterwards (default: all equal); a slot that
        gets -inf is pruned: it becomes an alias of the first live slot with its ancestor, or else of the first live
        slot. Raises ValueError for an index of another shape, or that points outside 0 ... n - 1.
        """
        index = self._checked(index.cpu())
        logw = torch.zeros(index.shape) if logw is None else logw.detach().float().cpu()
        alias = _aliases(index, logw)
        rows = (index + self.n * torch.arange(len(index))[:, None]).reshape(-1)[alias]

        def take(values: Tensor) -> Tensor:
            return values[rows.to(values.device)]

        return replace(
            self,
            x=take(self.x),
            x0=None if self.x0 is None else take(self.x0),
            history={name: take(values) for name, values in self.history.items()},
            memory={name: take(values) for name, values in self.memory.items()},
            label=self.label[rows],
            alias=alias,
            logw=logw.reshape(-1),
        )

    def _checked(self, index: Tensor) -> Tensor:
        expected = (len(self.x) // self.n, self.n)
        if index.shape != expected:
            raise ValueError(f"gather: index of shape {tuple(index.shape)}; expected (prompts, n) = {expected}.")
        if not 0 <= index.min() <= index.max() < self.n:
            raise ValueError(
                f"gather: index reaches from {int(index.min())} to {int(index.max())}; expected 0 ... {self.n - 1}: "
                "it counts within the particles of one prompt."
            )
        return index


def _aliases(index: Tensor, logw: Tensor) -> Tensor:
    """The slot (P n,) that speaks for each slot after a gather."""
    live = ~torch.isneginf(logw)
    slots = torch.arange(index.numel()).reshape(index.shape)
    if live.all():
        return slots.reshape(-1)
    same = (index[:, :, None] == index[:, None, :]) & live[:, None, :]  # (P, slot, live slot of equal ancestor)
    speaker = torch.where(same.any(-1), same.float().argmax(-1), live.float().argmax(-1)[:, None])
    return torch.where(live, slots, slots[:, :1] + speaker).reshape(-1)
