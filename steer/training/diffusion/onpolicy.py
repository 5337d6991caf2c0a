"""Learning from one's own samples: runs, their rewards, and a buffer that several updates draw from."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Generator, Tensor

from steer.training.diffusion.advantages import Advantage, idle_share, over_batch
from steer.training.diffusion.likelihood import Reduce, log_prob, stochastic
from steer.training.diffusion.objective import Objective
from steer.training.diffusion.rollout import transitions
from steer.training.loop import Logged

BY_BATCH = over_batch()


@dataclass(frozen=True)
class Samples:
    """b finished runs.

    final       (b, ...) clean samples
    prompts     (b,) places among the task's prompts
    rewards     (b,)
    advantages  (b,)
    x, after    (b, steps, ...) before and after each step that draws noise; no steps where they are not asked for
    logp        (b, steps) log-probability of each by the policy that drew it
    """

    final: Tensor
    prompts: Tensor
    rewards: Tensor
    advantages: Tensor
    x: Tensor
    after: Tensor
    logp: Tensor

    def __len__(self) -> int:
        return len(self.final)

    def to(self, device: torch.device) -> Samples:
        """With what the network sees on its device."""
        return replace(self, **{n: getattr(self, n).to(device) for n in ("final", "x", "after", "logp")})

    def then(self, other: Samples, keep: int) -> Samples:
        """Both, the last `keep` of them."""
        both = {f.name: torch.cat([getattr(self, f.name), getattr(other, f.name)])[-keep:] for f in fields(self)}
        return Samples(**both)


@dataclass(eq=False)
class OnPolicy(Objective):
    """A loss on the model's own samples: every `updates` losses new ones are drawn; `learn` draws on the last.

    prompts     different prompts in each batch of runs; each: runs of each
    updates     losses for each batch of runs
    advantage   from rewards; kept with the samples
    eta         noise dial of the runs, 1: ancestral
    guided      classifier-free guidance in runs and losses
    shared      the runs of a prompt begin at one noise
    steps       keep the steps of the runs, and not only where they end
    replay      how many batches of runs are kept
    """

    prompts: int = 4
    each: int = 4
    updates: int = 1
    advantage: Advantage = BY_BATCH
    eta: float = 1.0
    guided: bool = True
    shared: bool = False
    steps: bool = True
    replay: int = 1
    reduce: Reduce = "mean"
    checkpointed: bool = False

    def __post_init__(self):
        if min(self.prompts, self.each, self.updates, self.replay) < 1 or self.prompts > len(self.task.prompts):
            raise ValueError(
                f"{self.prompts} prompts of {len(self.task.prompts)}, {self.each} runs of each, {self.updates} updates "
                f"and {self.replay} batches kept: expected at least one of each, and no more prompts than there are."
            )
        self.noisy = stochastic(self.task.schedule, self.eta) if self.steps else []
        self.used, self.memory = 0, {}
        self.samples: Samples | None = None

    def learn(self, samples: Samples, generator: Generator) -> tuple[Tensor, Logged]:
        raise NotImplementedError

    def refreshed(self, generator: Generator) -> None:
        """Called when new samples have come, which `self.samples` ends with."""

    def loss(self, generator: Generator) -> tuple[Tensor, Logged]:
        if self.used % self.updates == 0:
            fresh = self.draw(generator)
            kept = self.replay * len(fresh)
            self.samples = fresh if self.samples is None else self.samples.then(fresh, kept)
            self.refreshed(generator)
        self.used += 1
        value, noted = self.learn(self.samples, generator)
        latest = slice(-self.prompts * self.each, None)
        rewards, prompts = self.samples.rewards[latest], self.samples.prompts[latest]
        return value, {"reward": rewards.mean().item(), "idle": idle_share(rewards, prompts), **noted}

    @torch.no_grad()
    def draw(self, generator: Generator) -> Samples:
        """Runs by the model as it is, with rewards and advantages."""
        task = self.task
        which = torch.randperm(len(task.prompts), generator=generator)[: self.prompts].repeat_interleave(self.each)
        noise = task.noise(self.prompts if self.shared else len(which), generator)
        x = task.schedule[0].sigma * (noise.repeat_interleave(self.each, 0) if self.shared else noise)
        cond, kept = task.cond(self.texts(which), self.guided), []
        for step in transitions(task, cond, x, task.steps, task.steps, eta=self.eta, generator=generator):
            if step.i in self.noisy:
                level, to = task.schedule[step.i], task.schedule[step.i + 1]
                logp = log_prob(step.after, step.x, step.x0, level, to, self.eta, self.reduce)
                kept.append((step.x, step.after, logp))
        empty = (step.after[:, None][:, :0], step.after[:, None][:, :0], step.after.new_empty(len(which), 0))
        stored = [torch.stack(parts, 1) for parts in zip(*kept)] if kept else empty
        rewards = task.score(step.after, self.texts(which)).cpu()
        return Samples(step.after, which, rewards, self.advantage(rewards, which, self.memory), *stored)

    def texts(self, which: Tensor) -> list[str]:
        return [self.task.prompts[k] for k in which.tolist()]

    def state_dict(self) -> dict[str, Any]:
        samples = None if self.samples is None else dict(vars(self.samples))
        return {"used": self.used, "memory": dict(self.memory), "samples": samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.used, self.memory = state["used"], dict(state["memory"])
        self.samples = None if state["samples"] is None else Samples(**state["samples"]).to(self.task.device)
