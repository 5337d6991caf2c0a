"""Unlearning a concept: what it does to a picture is reversed once the layout stands (ANT)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from steer.diffusion.state import Level
from steer.training.diffusion.denoising import squared_error
from steer.training.diffusion.objective import Objective
from steer.training.diffusion.rollout import transitions
from steer.training.diffusion.task import Cond, DiffusionTask
from steer.training.handle import Handle
from steer.training.loop import Logged
from steer.training.method import Masks, Select
from steer.training.weights.select import select


@dataclass(eq=False)
class Erasing(Objective):
    """L(late, -) + keep L(early, +), at two states of one run of the model under training by the concept's prompt.

    L(x, sign) = |p(x, c) - p*(x, c, sign)|^2 + free |p(x, 0) - p*(x, 0)|^2
    p*(x, c, sign) = p*(x, 0) + sign strength (p*(x, c) - p*(x, 0)), with p* the model before training

    arXiv 2504.12782. Before the switch the model is kept as it is, from there on it turns away from the concept.

    concept  its prompt
    switch   fraction of the run; 0: reversed from the start, as ESD does
    """

    concept: str = field(kw_only=True)
    switch: float = 0.14
    strength: float = 1.0
    keep: float = 1.0
    free: float = 0.5
    batch: int = 1

    def __post_init__(self):
        if not 0 <= self.switch < 1:
            raise ValueError(f"switch at {self.switch}: expected a fraction of the run in [0, 1).")

    def loss(self, generator: Generator) -> tuple[Tensor, Logged]:
        task, k = self.task, round(self.switch * self.task.steps)
        cond = task.cond([self.concept] * self.batch)
        if any(leaf.shape[1] < 2 for leaf in cond.values()):
            raise ValueError("what a concept does is a difference of two branches; give the task a guidance_scale > 1.")
        late = int(torch.randint(k, task.steps, (), generator=generator))
        early = int(torch.randint(k, (), generator=generator)) if k else None
        with torch.no_grad():
            x = task.schedule[0].sigma * task.noise(self.batch, generator)
            states = [step.x for step in transitions(task, cond, x, task.steps, late + 1)]
        value = self._turned(states[late], task.schedule[late], cond, -self.strength)
        if early is not None:
            value = value + self.keep * self._turned(states[early], task.schedule[early], cond, self.strength)
        return value, {}

    def _turned(self, x: Tensor, level: Level, cond: Cond, strength: float) -> Tensor:
        task = self.task
        free, asked = (tree_map(lambda leaf, b=b: leaf[:, b : b + 1], cond) for b in (0, 1))
        with torch.no_grad(), self.handle.using(self.handle.start):
            unconditional = task.x0(x, level, free)
            wanted = unconditional + strength * (task.x0(x, level, asked) - unconditional)
        concept = squared_error(task, task.x0(x, level, asked), wanted, level)
        return (concept + self.free * squared_error(task, task.x0(x, level, free), unconditional, level)).mean()


def salient(
    objective: Callable[[Handle, DiffusionTask], Objective], share: float = 0.5, losses: int = 10, seeds: int = 5
) -> Select:
    """The entries of each tensor whose |gradient|, summed over some losses, is among the largest for every seed."""

    def choose(handle: Handle, task: DiffusionTask) -> Masks:
        loss, (names, trained) = objective(handle, task), zip(*handle.parameters.items())
        found = []
        for seed in range(seeds):
            generator, total = Generator().manual_seed(seed), {name: 0.0 for name in names}
            for step in range(losses):
                parts = torch.autograd.grad(loss(generator, step)[0], trained, allow_unused=True)
                total = {n: total[n] + (0 if part is None else part) for n, part in zip(names, parts)}
            scores = {n: torch.as_tensor(total[n]).expand_as(handle.parameters[n]).abs() for n in names}
            found.append(select(scores, share, "tensor"))
        return {name: reduce(torch.logical_and, [masks[name] for masks in found]) for name in names}

    return choose
