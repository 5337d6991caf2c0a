"""The denoising loss on real pictures: plain, weighted by a reward, or from two sets split by noise level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from steer.diffusion.state import Level
from steer.training.diffusion.levels import ANYWHERE, Choose, prediction_weight
from steer.training.diffusion.objective import Objective
from steer.training.diffusion.pairs import Pairs
from steer.training.diffusion.task import Cond, DiffusionTask
from steer.training.loop import Logged

Source = Callable[[DiffusionTask, Level], Pairs]
"""(task, level) -> the pictures that are learnt at a noise level."""


def noised(task: DiffusionTask, x0: Tensor, level: Level, generator: Generator, offset: float = 0.0) -> Tensor:
    """x = alpha x0 + sigma (eps + offset n), n ~ N(0, 1) the same for all pixels of a channel."""
    eps = task.noise(len(x0), generator)
    if offset:
        shape = (*x0.shape[:2], *[1] * (x0.ndim - 2))
        eps = eps + offset * torch.randn(shape, generator=generator, dtype=eps.dtype).to(eps)
    return level.alpha * x0 + level.sigma * eps


def squared_error(task: DiffusionTask, x0: Tensor, wanted: Tensor, level: Level) -> Tensor:
    """(b,) mean squared difference of the predictions that mean these two x0."""
    return prediction_weight(level, task.kind) * (x0 - wanted).float().square().flatten(1).mean(1)


def real(task: DiffusionTask, level: Level) -> Pairs:
    """The task's pictures at every level."""
    return task.pairs()


def content_first(until: float = 0.1) -> Source:
    """`content` at noisy levels, progress < until; `real`, which has the style, at cleaner ones (Style Tailoring)."""
    return lambda task, level: task.pairs("content" if level.progress < until else "real")


def exponential(temperature: float = 1.0) -> Callable[[Tensor], Tensor]:
    """exp((r - mean) / (temperature std)), with a mean of 1: reward-weighted regression."""
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: expected more than 0.")

    def weights(rewards: Tensor) -> Tensor:
        spread = rewards.std(correction=0).clamp_min(1e-12)
        return torch.softmax((rewards - rewards.mean()) / (temperature * spread), 0) * len(rewards)

    return weights


@dataclass(eq=False)
class Denoising(Objective):
    """mean w |prediction - target|^2 on the model's own target, at x = alpha x0 + sigma eps.

    batch    pictures a loss
    levels   noise levels among which they are dealt: rows of one network call share a level
    at       how a level is chosen
    offset   of the noise, see `noised` (Emu, arXiv 2309.15807)
    source   which pictures are learnt at a level
    weights  rewards of all real pictures -> their w; None: all 1
    dropout  share of captions replaced by the unconditional branch, where the task is guided
    """

    batch: int = 8
    levels: int = 4
    at: Choose = ANYWHERE
    offset: float = 0.0
    source: Source = real
    weights: Callable[[Tensor], Tensor] | None = None
    dropout: float = 0.1

    def __post_init__(self):
        if not 1 <= self.levels <= self.batch or self.batch % self.levels:
            raise ValueError(f"{self.batch} pictures at {self.levels} levels: expected a whole number at each.")
        self.importance = None if self.weights is None else self.weights(self._rewards(self.task.pairs()))

    def loss(self, generator: Generator) -> tuple[Tensor, Logged]:
        parts = [self._at_level(self.at(self.task, generator), generator) for _ in range(self.levels)]
        return torch.cat(parts).mean(), {}

    def _at_level(self, level: Level, generator: Generator) -> Tensor:
        pairs = self.source(self.task, level)
        index, wanted = pairs.draw(self.batch // self.levels, generator)
        x = noised(self.task, wanted, level, generator, self.offset)
        cond = self.task.cond([pairs.captions[k] for k in index.tolist()])
        x0 = self.task.x0(x, level, dropped(cond, torch.rand(len(index), generator=generator) < self.dropout))
        errors = squared_error(self.task, x0, wanted, level)
        return errors if self.importance is None else errors * self.importance[index].to(errors)

    @torch.no_grad()
    def _rewards(self, pairs: Pairs) -> Tensor:
        parts = zip(pairs.latents.split(16), [pairs.captions[k : k + 16] for k in range(0, len(pairs.captions), 16)])
        return torch.cat([self.task.score(latents, captions) for latents, captions in parts]).cpu()


def dropped(cond: Cond, which: Tensor) -> Cond:
    """One branch (b, 1, ...): the unconditional one for rows `which` (b,), the conditional one for the others."""
    return tree_map(lambda leaf: torch.where(_beside(which, leaf), leaf[:, :1], leaf[:, -1:]), cond)


def _beside(which: Tensor, leaf: Tensor) -> Tensor:
    return which.to(leaf.device).reshape(-1, *[1] * (leaf.ndim - 1))
