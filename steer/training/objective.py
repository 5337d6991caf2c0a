"""What losses have in common that draw on a task with a ledger: a note of what each call cost, and a memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

from steer.training.handle import Handle
from steer.training.loop import Logged


@dataclass(eq=False)
class Objective:
    """A loss on a task: a subclass has its dials as fields, and `loss(generator) -> (scalar, {noted})`.

    Every call notes what it added to the task's ledger, seconds apart.
    """

    handle: Handle
    task: Any

    def loss(self, generator: Generator) -> tuple[Tensor, Logged]:
        raise NotImplementedError

    def __call__(self, generator: Generator, step: int) -> tuple[Tensor, Logged]:
        before = self.task.ledger.row()
        value, noted = self.loss(generator)
        after = self.task.ledger.row()
        return value, {**noted, **{name: after[name] - before[name] for name in before if name != "seconds"}}

    def state_dict(self) -> dict[str, Any]:
        """What is remembered from one call to the next."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
