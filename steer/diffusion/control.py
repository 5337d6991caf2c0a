"""Controllers: small frozen dataclasses with three stations, and the ways to put them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import Tensor

from steer.diffusion.state import Level, State

Denoiser = Callable[[Tensor, Level, Any], Tensor]
"""(x (b, ...), level, cond: a tree of particle-first tensors or None) -> x0 (b, ...)."""


class Controller:
    """Steers a run at three stations; each does nothing unless a subclass says otherwise.

    start(state) -> State         once, at the noisy end: initial noise, seed search
    wrap(denoiser) -> Denoiser    around every network evaluation: guidance, attention features
    look(state) -> State          at every step and once at the end: x0 is fresh and x has not moved yet; score, gather;
                                  at the end x and x0 are one thing, and an edit of either is an edit of both

    Make yours a frozen dataclass: its repr is then its configuration and its row in a results table.
    """

    needs_noise: bool = False
    """True if the controller is idle under a deterministic solver; such a run is refused."""

    evaluates: bool = False
    """True if `look` asks the network itself, by `state.denoise`, at every look: it finds x0 = None where nobody has
    asked yet, and leaves the x0 that belongs to the x it leaves, both without a graph. So a gradient costs one forward
    row and one backward row."""

    couples_rows: bool = False
    """True if `wrap` lets the rows of a batch see each other: then no rows are shared and batches are never cut."""

    @property
    def reads(self) -> bool:
        """Whether its look reads x0; where none does before one that `evaluates`, the network is not asked for it."""
        return type(self).look is not Controller.look

    def start(self, state: State) -> State:
        return state

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        return denoiser

    def look(self, state: State) -> State:
        return state


@dataclass(frozen=True)
class Chain(Controller):
    """Controllers one after the other: `start` and `look` left to right, the last `wrap` outermost."""

    controllers: tuple[Controller, ...]

    @property
    def needs_noise(self) -> bool:  # type: ignore[override]
        return any(c.needs_noise for c in self.controllers)

    @property
    def evaluates(self) -> bool:  # type: ignore[override]
        """Whether the first that reads x0 does: the others find it."""
        return next((c.evaluates for c in self.controllers if c.reads), False)

    @property
    def reads(self) -> bool:
        return any(c.reads for c in self.controllers)

    @property
    def couples_rows(self) -> bool:  # type: ignore[override]
        return any(c.couples_rows for c in self.controllers)

    def start(self, state: State) -> State:
        return reduce(lambda s, c: c.start(s), self.controllers, state)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        return reduce(lambda f, c: c.wrap(f), self.controllers, denoiser)

    def look(self, state: State) -> State:
        return reduce(lambda s, c: c.look(s.evaluated() if c.reads and not c.evaluates else s), self.controllers, state)


def chain(*controllers: Controller) -> Chain:
    """Put controllers in a row; nested chains are flattened.

    Raises ValueError for anything that is no Controller.
    """
    flat: list[Controller] = []
    for c in controllers:
        if not isinstance(c, Controller):
            raise ValueError(
                f"chain() got {c!r}; expected Controller objects. A reward becomes one by a search: code({c!r})."
            )
        flat.extend(c.controllers if isinstance(c, Chain) else [c])
    return Chain(tuple(flat))


def as_chain(controllers) -> Chain:
    """A chain from what a user passes: one controller, or a list of them. Raises ValueError for anything else."""
    return chain(*controllers) if isinstance(controllers, Iterable) else chain(controllers)


@dataclass(frozen=True)
class During(Controller):
    """A controller that acts only while start <= progress < stop, and looks only every so many steps."""

    inner: Controller
    start_at: float
    stop_at: float
    every: int

    @property
    def needs_noise(self) -> bool:  # type: ignore[override]
        return self.inner.needs_noise

    @property
    def evaluates(self) -> bool:  # type: ignore[override]
        return self.inner.evaluates

    @property
    def couples_rows(self) -> bool:  # type: ignore[override]
        return self.inner.couples_rows

    @property
    def reads(self) -> bool:
        return self.inner.reads

    def start(self, state: State) -> State:
        return self.inner.start(state)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        inside = self.inner.wrap(denoiser)
        if inside is denoiser:
            return denoiser
        return lambda x, level, cond: (inside if self._on(level.progress) else denoiser)(x, level, cond)

    def look(self, state: State) -> State:
        due = state.finished or (self._on(state.i / state.steps) and state.i % self.every == 0)
        return self.inner.look(state) if due else state

    def _on(self, progress: float) -> bool:
        return self.start_at <= progress < self.stop_at


def during(controller: Controller, start: float = 0.0, stop: float = 1.0, every: int = 1) -> During:
    """Limit a controller to a stretch of the run, given as fractions of its steps (0: noise, 1: clean).

    The last look, at the finished sample, is always passed on. Raises ValueError unless 0 <= start < stop <= 1.
    """
    if not (0 <= start < stop <= 1) or every < 1:
        raise ValueError(
            f"during(start={start}, stop={stop}, every={every}): expected 0 <= start < stop <= 1, every >= 1."
        )
    return During(controller, start, stop, every)
