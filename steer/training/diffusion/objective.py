"""What all losses of diffusion models share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.diffusion.state import Level
from steer.training import objective
from steer.training.diffusion.task import DiffusionTask


@dataclass(eq=False)
class Objective(objective.Objective):
    """A loss on a diffusion task; every call notes its rows, backward_rows, decodes and reward_calls."""

    task: DiffusionTask

    @torch.no_grad()
    def reference(self, x: Tensor, level: Level, prompts: Sequence[str], guided: bool) -> Tensor:
        """x0 by the model as it was before training."""
        with self.handle.using(self.handle.start):
            return self.task.x0(x, level, self.task.cond(prompts, guided))
