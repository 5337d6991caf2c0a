"""A tuned model and the one it came from along one run: combined generation, annealed interpolation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.state import Level
from steer.training.handle import Handle


@dataclass(frozen=True)
class Blend(Controller):
    """x0 = (1 - w) x0 of the model before training + w x0 of the tuned one, with w = share(progress) in [0, 1].

    Where w is 0 or 1 only one of them is asked. The weights are changed under the run: one run at a time.

    guided  the tuned model's x0 is guided as the pipeline says; False: not at all
    """

    handle: Handle = field(repr=False)
    share: Callable[[float], float] = field(repr=False)
    guided: bool = True

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def blended(x: Tensor, level: Level, cond: Any) -> Tensor:
            w, parts = self.share(level.progress), []
            if w > 0:
                told = cond if self.guided else tree_map(lambda leaf: leaf[:, -1:], cond)
                parts.append(w * denoiser(x, level, told))
            if w < 1:
                with self.handle.using(self.handle.start):
                    parts.append((1 - w) * denoiser(x, level, cond))
            return torch.stack(parts).sum(0)

        return blended


def combined(handle: Handle, switch: float = 0.75, guided: bool = False) -> Blend:
    """The old model up to this fraction of the steps, the tuned one after it: diversity from the one, reward from the
    other (ImageReFL, arXiv 2505.22569). Raises ValueError unless 0 <= switch <= 1.
    """
    if not 0 <= switch <= 1:
        raise ValueError(f"switch at {switch}: expected a fraction of the run in [0, 1].")
    return Blend(handle, lambda progress: float(progress >= switch), guided)


def annealed(handle: Handle, power: float = 1.0) -> Blend:
    """w = progress^power (AIG): the tuned model comes in little by little. Raises ValueError for power <= 0."""
    if power <= 0:
        raise ValueError(f"power {power}: expected more than 0.")
    return Blend(handle, lambda progress: progress**power)
