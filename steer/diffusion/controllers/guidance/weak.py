"""Another denoiser in the place of the given one, for guidance away from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.state import Level, State


@dataclass
class Tally:
    """Rows evaluated outside of the run's own network, until the next look enters them into the ledger."""

    rows: int = 0


@dataclass(frozen=True)
class Instead(Controller):
    """Another denoiser in the place of the given one, called with the same x, level and cond; its rows are counted."""

    denoiser: Denoiser
    tally: Tally = field(default_factory=Tally, init=False, repr=False, compare=False)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def other(x: Tensor, level: Level, cond: Any) -> Tensor:
            self.tally.rows += len(x)
            return self.denoiser(x, level, cond)

        return other

    def look(self, state: State) -> State:
        state.run.ledger.rows += self.tally.rows
        self.tally.rows = 0
        return state
