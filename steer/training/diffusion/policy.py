"""Denoising as a chain of decisions: policy gradients with a clipped ratio (DDPO, DPOK, TexForce)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from steer.training.diffusion.critic import Critic, features
from steer.training.diffusion.denoising import squared_error
from steer.training.diffusion.likelihood import log_prob, step_kl
from steer.training.diffusion.onpolicy import OnPolicy, Samples
from steer.training.loop import Logged


def clipped(logp: Tensor, old: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) and where that is cut off, with rho = exp(logp - old)."""
    ratio = (logp - old).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    beyond = ((ratio - 1) * advantages.sign()) > clip
    return loss, beyond


@dataclass(eq=False)
class PolicyGradient(OnPolicy):
    """mean over samples and steps of the clipped ratio's loss, + kl_weight KL to the model before training.

    arXiv 2305.13301 (DDPO), 2305.16381 (DPOK), 2311.15657 (TexForce).

    clip     range of the ratio; 1e-4 goes with log-probabilities averaged over dimensions
    share    of the steps that a loss takes, drawn anew for it
    batch    samples that a loss takes, drawn from the buffer; None: all
    weight   of the policy's loss (DPOK's w_r)
    kl       step: the Gaussians' own, |m - m_ref|^2 / (2 w^2); prediction: |pred - pred_ref|^2, as DPOK's code has it
    critic   makes a value network for so many features; r - V(x_t) is then the advantage; None: none
    """

    clip: float = 1e-4
    share: float = 1.0
    batch: int | None = None
    weight: float = 1.0
    kl_weight: float = 0.0
    kl: Literal["step", "prediction"] = "prediction"
    critic: Callable[[int], Critic] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.value = None
        if self.critic is not None:
            probe, level = torch.zeros(1, *self.task.shape), self.task.schedule[0]
            with torch.no_grad():
                cond = self.task.cond(self.task.prompts[:1], self.guided)
            self.value = self.critic(features(probe.to(self.task.device), level, cond).shape[1])

    def learn(self, samples: Samples, generator: Generator) -> tuple[Tensor, Logged]:
        count = max(1, round(self.share * len(self.noisy)))
        steps = torch.randperm(len(self.noisy), generator=generator)[:count].sort().values.tolist()
        rows = torch.randperm(len(samples), generator=generator)[: self.batch].sort().values
        parts = [self._step(samples, j, rows) for j in steps]
        loss, beyond, drift = (torch.stack(column).mean() for column in zip(*parts))
        noted = {"clipped": beyond.item(), "kl": drift.item()}
        return self.weight * loss + self.kl_weight * drift, noted

    def _step(self, samples: Samples, j: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, share of clipped ratios and divergence at the j-th step that draws noise."""
        task, i = self.task, self.noisy[j]
        level, to, x = task.schedule[i], task.schedule[i + 1], samples.x[rows, j]
        prompts = self.texts(samples.prompts[rows])
        reference = self.reference(x, level, prompts, self.guided) if self.kl_weight else None
        cond = task.cond(prompts, self.guided)
        x0 = task.x0(x, level, cond, self.checkpointed)
        logp = log_prob(samples.after[rows, j], x, x0, level, to, self.eta, self.reduce)
        advantages = samples.advantages[rows]
        if self.value is not None:
            advantages = samples.rewards[rows] - self.value(features(x, level, cond))
        loss, beyond = clipped(logp, samples.logp[rows, j], advantages.to(logp), self.clip)
        if reference is None:
            drift = loss.new_zeros(1)
        elif self.kl == "step":
            drift = step_kl(x0, reference, x, level, to, self.eta, self.reduce)
        else:
            drift = squared_error(task, x0, reference, level)
        return loss.mean(), beyond.float().mean(), drift.mean()

    @torch.no_grad()
    def refreshed(self, generator: Generator) -> None:
        if self.value is None:
            return
        cond = self.task.cond(self.texts(self.samples.prompts), self.guided)
        levels = [self.task.schedule[i] for i in self.noisy]
        seen = torch.cat([features(self.samples.x[:, j], level, cond) for j, level in enumerate(levels)])
        self.value.learn(seen, self.samples.rewards.repeat(len(levels)), generator)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({} if self.value is None else {"value": self.value.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.value is not None:
            self.value.load_state_dict(state["value"])
