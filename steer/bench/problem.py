"""What a method is given to solve: a denoiser, its prompts and a schedule, whether of a pipeline or of a toy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.ledger import Ledger
from steer.diffusion.loop import finished, sample
from steer.diffusion.solve import ddim
from steer.diffusion.state import Level, State


class Found(NamedTuple):
    """x (prompts, *shape), one sample a prompt, and the cost of all."""

    x: Tensor
    ledger: Ledger


@dataclass(frozen=True)
class Problem:
    """The arguments of `steer.sample` that do not depend on the method, with a fresh generator of one seed."""

    denoiser: Denoiser
    shape: Sequence[int]
    schedule: list[Level]
    prompts: tuple[str, ...]
    generator: Generator
    cond: Any = None
    decode: Callable[[Tensor], Tensor] | None = None

    def sample(self, controllers: Sequence[Controller], n: int, eta: float = 1.0) -> State:
        """The finished state of n particles a prompt under DDIM with this eta."""
        return finished(
            sample(
                self.denoiser,
                self.shape,
                self.schedule,
                controllers,
                n=n,
                solver=ddim(eta),
                generator=self.generator,
                prompts=self.prompts,
                cond=self.cond,
                decode=self.decode,
            )
        )

    def solve(self, controllers: Sequence[Controller], n: int, eta: float = 1.0) -> Found:
        """The particle of every prompt that scored best at the end.

        Raises ValueError where several particles are left and none of the controllers has chosen.
        """
        state = self.sample(controllers, n, eta)
        if n == 1:
            return Found(state.x, state.run.ledger)
        if not state.trace or not state.finished or state.trace[-1].i != state.steps:
            raise ValueError(f"{controllers!r} leave {n} particles a prompt; end with a search, such as best_of_n.")
        look = state.trace[-1]
        best = look.scores.gather(1, look.index).argmax(-1)
        return Found(state.grouped(state.x)[torch.arange(len(best)), best], state.run.ledger)
