"""Proximal reward difference prediction: rewards are read off from log-ratios of whole runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from steer.training.diffusion.likelihood import log_prob
from steer.training.diffusion.onpolicy import OnPolicy, Samples
from steer.training.loop import Logged


def pair_loss(ratio: Tensor, old: Tensor, rewards: Tensor, beta: float, clip: float, over: str = "mean") -> Tensor:
    """Mean over the pairs of a prompt with r^a > r^b of max(l, l_clip), l = (h^a - h^b - (r^a - r^b) / beta)^2.

    ratio, old  (b, steps) h_t = log pi(x_{t-1} | x_t) - log pi_ref, by the policy under training and by the one that
                drew the runs; h is their mean or sum over t, and l_clip takes h_t cut to old_t +- clip
    rewards     (b,)

    Pairs with equal rewards drop out; 0 where all are equal.
    """
    first, second = torch.nonzero(rewards[:, None] > rewards[None, :], as_tuple=True)
    if not len(first):
        return 0 * ratio.sum()
    gap = (rewards[first] - rewards[second]) / beta

    def loss(steps: Tensor) -> Tensor:
        h = steps.mean(1) if over == "mean" else steps.sum(1)
        return (h[first] - h[second] - gap).square()

    near = torch.maximum(torch.minimum(ratio, old + clip), old - clip)
    return torch.maximum(loss(ratio), loss(near)).mean()


@dataclass(eq=False)
class RewardDifference(OnPolicy):
    """The mean of `pair_loss` over prompts: its optimum is pi_ref exp(r / beta) / Z, as of RL with a KL penalty.

    arXiv 2402.08714 (PRDP). Runs of a prompt that begin at different noise have different Z unless the noise says
    nothing of the result; `shared` begins them at one.

    beta   strength of the pull to the model before training, in units of the reward. With `over="sum"` and
           `reduce="sum"` it is the formula's; means over steps or dimensions ask for one larger by their number
    clip   how far h_t may go from the policy that drew the runs
    over   steps are averaged (the authors' code) or summed (their equations)
    """

    beta: float = 1.0
    clip: float = 1e-4
    over: Literal["mean", "sum"] = "mean"
    each: int = 4
    updates: int = 4

    def __post_init__(self):
        super().__post_init__()
        if self.each < 2:
            raise ValueError(f"{self.each} run of each prompt: rewards are compared, expected at least 2.")
        self.anchors: Tensor | None = None

    def learn(self, samples: Samples, generator: Generator) -> tuple[Tensor, Logged]:
        if self.anchors is None:
            with torch.no_grad(), self.handle.using(self.handle.start):
                self.anchors = self._log_probs(samples)
        ratio, old = self._log_probs(samples) - self.anchors, samples.logp - self.anchors
        rewards = samples.rewards.to(ratio)
        groups = [samples.prompts == prompt for prompt in samples.prompts.unique()]
        losses = [pair_loss(ratio[g], old[g], rewards[g], self.beta, self.clip, self.over) for g in groups]
        moved = (ratio - old).abs()
        return torch.stack(losses).mean(), {"clipped": (moved > self.clip).float().mean().item()}

    def refreshed(self, generator: Generator) -> None:
        self.anchors = None

    def _log_probs(self, samples: Samples) -> Tensor:
        """(b, steps) of the stored runs, by the model as it is."""
        task, cond, found = self.task, self.task.cond(self.texts(samples.prompts), self.guided), []
        for j, i in enumerate(self.noisy):
            level, to, x = task.schedule[i], task.schedule[i + 1], samples.x[:, j]
            x0 = task.x0(x, level, cond, self.checkpointed)
            found.append(log_prob(samples.after[:, j], x, x0, level, to, self.eta, self.reduce))
        return torch.stack(found, 1)

    def state_dict(self) -> dict:
        return {**super().state_dict(), "anchors": self.anchors}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.anchors = None if state["anchors"] is None else state["anchors"].to(self.task.device)
