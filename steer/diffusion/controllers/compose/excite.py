"""Steps of x along the gradient of an attention loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.controllers.compose.objectives import Loss
from steer.diffusion.controllers.compose.reading import Reader
from steer.diffusion.state import State


@dataclass(frozen=True)
class AttentionStep(Controller):
    """x <- x - strength sqrt(r) grad_x loss(maps(x)) at every look, before the network's own step.

    r       falls linearly from decay[0] at the run's first step to decay[1] at its last
    refine  (progress, loss) pairs: at the step next to a progress of the run, 0 to 1, the same step is first repeated
            until the loss is reached, at most `rounds` times, particle by particle

    Each step costs one forward and one backward row a particle, of the conditional branch alone. With strength 0 it
    does nothing, bit for bit. Limit it to a stretch of the run by `during`. Raises ValueError for a strength that is
    not finite, and as `Reader` does.
    """

    reader: Reader
    loss: Loss
    strength: float = 20.0
    decay: tuple[float, float] = (1.0, 0.5)
    refine: tuple[tuple[float, float], ...] = ()
    rounds: int = 20

    def __post_init__(self):
        if not math.isfinite(self.strength) or min(self.decay) < 0 or self.rounds < 0:
            raise ValueError(
                f"strength = {self.strength}, decay = {self.decay}, rounds = {self.rounds}: expected a finite strength "
                "and numbers that are not negative."
            )

    @property
    def evaluates(self) -> bool:  # type: ignore[override]
        return self.strength != 0

    def start(self, state: State) -> State:
        self.reader.check(state)
        return state

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        return self.reader.wrap(denoiser) if self.strength else denoiser

    @torch.no_grad()
    def look(self, state: State) -> State:
        if state.finished or not self.strength:
            return state
        x, size, aim = state.x, self._size(state), self._aim(state)
        for left in reversed(range(1 if aim is None else self.rounds + 1)):
            value, gradient = self.reader.slope(state, x, self.loss)
            far = value > (math.inf if aim is None else aim)
            last = left == 0 or not far.any()
            x = x - size * (gradient if last else _rows(far, gradient) * gradient).to(x.dtype)
            if last:
                break
        return replace(state, x=x, x0=None)  # nobody has asked the network there yet

    def _size(self, state: State) -> float:
        first, last = self.decay
        return self.strength * math.sqrt(first + (last - first) * state.i / max(1, state.steps - 1))

    def _aim(self, state: State) -> float | None:
        return next((loss for progress, loss in self.refine if round(progress * state.steps) == state.i), None)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like)
