"""Direct reward: ascend the gradient of a reward through the last steps of the sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from steer.training.diffusion.denoising import Denoising
from steer.training.diffusion.levels import step_at
from steer.training.diffusion.objective import Objective
from steer.training.diffusion.rollout import Plan, rollout
from steer.training.diffusion.task import DiffusionTask
from steer.training.loop import Logged

Make = Callable[[DiffusionTask, Generator], tuple[Tensor, list[str]]]
"""(task, generator) -> clean samples with a graph to what is trained, and their prompts."""
Head = Callable[[Tensor], Tensor]
"""Rewards -> losses."""


def prompts_of(task: DiffusionTask, count: int, generator: Generator) -> list[str]:
    """`count` prompts of a task, drawn with replacement."""
    return [task.prompts[k] for k in torch.randint(len(task.prompts), (count,), generator=generator).tolist()]


def sampled(plan: Plan, batch: int = 4, eta: float = 0.0, guided: bool = True, checkpointed: bool = False) -> Make:
    """Samples of a run from noise, with the gradient that the plan lets through."""

    def make(task: DiffusionTask, generator: Generator) -> tuple[Tensor, list[str]]:
        prompts, noise = prompts_of(task, batch, generator), task.noise(batch, generator)
        first, stop = plan(task.steps, generator)
        options = {"eta": eta, "generator": generator, "checkpointed": checkpointed}
        x = task.schedule[0].sigma * noise
        return rollout(task, task.cond(prompts, guided), x, first, stop, **options), prompts

    return make


def renoised(n: int = 2, batch: int = 4, guided: bool = True) -> Make:
    """n samples a run, each by the last step alone from the run's own result, noised anew (DRaFT-LV).

    x = alpha sg(x0) + sigma eps_i at the last level of the sampler; the average over i has a lower variance.
    """

    def make(task: DiffusionTask, generator: Generator) -> tuple[Tensor, list[str]]:
        prompts, noise, level = prompts_of(task, batch, generator), task.noise(batch, generator), task.schedule[-2]
        with torch.no_grad():
            x0 = rollout(task, task.cond(prompts, guided), task.schedule[0].sigma * noise, task.steps, task.steps)
        prompts = prompts * n
        x = level.alpha * x0.repeat(n, *[1] * len(task.shape)) + level.sigma * task.noise(len(prompts), generator)
        return task.x0(x, level, task.cond(prompts, guided)), prompts

    return make


def from_real(plan: Plan, start: float = 0.75, batch: int = 4) -> Make:
    """Samples of a run that begins at real pictures, noised to the level of step start * steps (ImageReFL)."""

    def make(task: DiffusionTask, generator: Generator) -> tuple[Tensor, list[str]]:
        index, latents = task.pairs().draw(batch, generator)
        prompts = [task.pairs().captions[k] for k in index.tolist()]
        begin, (first, stop) = step_at(start, task.steps), plan(task.steps, generator)
        level = task.schedule[begin]
        x = level.alpha * latents + level.sigma * task.noise(batch, generator)
        return rollout(task, task.cond(prompts, guided=False), x, first, max(stop, begin + 1), begin=begin), prompts

    return make


def maximise(rewards: Tensor) -> Tensor:
    """-r."""
    return -rewards


def towards(target: float) -> Head:
    """|r - target|: unlike -r it slows down where the reward is already good (AlignProp)."""
    return lambda rewards: (rewards - target).abs()


def hinge(margin: float = 2.0) -> Head:
    """max(0, margin - r): samples that are good enough are left alone (ReFL)."""
    return lambda rewards: (margin - rewards).clamp_min(0)


@dataclass(eq=False)
class DirectReward(Objective):
    """scale * (mean head(r(x0, c)) + anchor * denoising loss of real pictures).

    arXiv 2309.17400 (DRaFT), 2310.03739 (AlignProp), 2304.05977 (ReFL), 2505.22569 (ImageReFL). Raises ValueError for a
    reward without a gradient.

    make     what is scored
    anchor   weight of the denoising loss, which keeps what is made near real pictures; 0: none
    anchors  that loss
    """

    make: Make = field(kw_only=True)
    head: Head = maximise
    scale: float = 1.0
    anchor: float = 0.0
    anchors: Callable[..., Denoising] = Denoising

    def __post_init__(self):
        reward = self.task.reward
        if reward is None or not reward.differentiable:
            raise ValueError(
                f"{reward!r} gives no gradient to follow; use a differentiable reward, or a method that only needs "
                "its value: ddpo, dpok, prdp, nft."
            )
        self.denoising = self.anchors(self.handle, self.task) if self.anchor else None

    def loss(self, generator: Generator) -> tuple[Tensor, Logged]:
        x0, prompts = self.make(self.task, generator)
        rewards = self.task.score(x0, prompts)
        value, noted = self.head(rewards).mean(), {"reward": rewards.mean().item()}
        if self.denoising is not None:
            anchor, _ = self.denoising.loss(generator)
            value, noted = value + self.anchor * anchor, {**noted, "denoising": anchor.item()}
        return self.scale * value, noted
