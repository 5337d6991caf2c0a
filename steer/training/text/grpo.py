"""Group-relative policy optimisation on a text reward, with the signs of vanishing gradients."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from steer.language.data import Encoded
from steer.training.diffusion.advantages import group_statistics, idle_share, over_group
from steer.training.diffusion.policy import clipped
from steer.training.handle import Handle
from steer.training.loop import Logged
from steer.training.objective import Objective
from steer.training.text.task import TextTask

IDLE, GROUPS = 0.5, 20
"""The share of groups without a signal that is told of, and of how many groups."""


@dataclass(eq=False)
class GRPO(Objective):
    """mean over tokens of max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) + beta (exp(d) - d - 1), d = log ref - log p.

    arXiv 2402.03300, with the mean over all tokens of a batch (arXiv 2503.14476). rho is the ratio to the policy that
    drew the answers, the reference the model as it is when the objective is made.

    prompts      different prompts in each batch of answers; each: answers to each
    updates      losses for each batch of answers
    spread       whose std divides r - mean: of the answers to a prompt, of the batch, or none
    temperature  at which answers are drawn, and at which they have their probabilities

    Notes the mean reward, `idle`, the share of answers in groups that all earned the same, and the std in a group.
    Warns where most groups are idle: the expected gradient of a prompt is bounded by a power of the std of its rewards
    (arXiv 2310.20703), so that neither time nor a higher rate helps, but a short phase on examples (`sft_grpo`) does.
    """

    handle: Handle
    task: TextTask
    prompts: int = 4
    each: int = 8
    updates: int = 1
    clip: float = 0.2
    beta: float = 0.0
    spread: Literal["group", "batch", "none"] = "group"
    temperature: float = 1.0

    def __post_init__(self):
        if min(self.prompts, self.updates) < 1 or self.each < 2 or self.prompts > len(self.task.prompts):
            raise ValueError(
                f"{self.prompts} prompts of {len(self.task.prompts)}, {self.each} answers to each, {self.updates} "
                "updates: expected at least 1, 2 and 1, and no more prompts than there are."
            )
        self.reference = self.handle.weights() if self.beta else None
        self.used, self.groups, self.idle = 0, 0, 0.0
        self.samples: dict[str, Tensor] = {}

    def loss(self, generator: Generator) -> tuple[Tensor, Logged]:
        if self.used % self.updates == 0:
            self.samples = self.draw(generator)
        self.used += 1
        rows, s = _rows(self.samples), self.samples
        logp, row = self.log_probs(rows)
        loss, beyond = clipped(logp, s.get("old", logp.detach()), s["advantages"].to(logp)[row], self.clip)
        if self.reference is not None:
            d = s["reference"] - logp
            loss = loss + self.beta * (d.exp() - d - 1)
        std = group_statistics(s["rewards"], s["prompts"])[1].mean().item()
        noted = {"reward": s["rewards"].mean().item(), "std": std, "idle": idle_share(s["rewards"], s["prompts"])}
        return loss.mean(), {**noted, "clipped": beyond.float().mean().item(), "length": len(logp) / len(rows)}

    def draw(self, generator: Generator) -> dict[str, Tensor]:
        """Answers of the model as it is, with rewards, advantages and the log-probabilities that later losses need."""
        every = torch.randperm(len(self.task.prompts), generator=generator)
        which = every[: self.prompts].repeat_interleave(self.each)
        asked = [self.task.prompts[k] for k in which.tolist()]
        rows, texts = self.task.sample(asked, generator, self.temperature)
        rewards = self.task.score(texts, asked)
        found = {"ids": rows.input_ids, "mask": rows.attention_mask, "answer": rows.answer, "prompts": which}
        found |= {"rewards": rewards, "advantages": over_group(self.spread)(rewards, which, {})}
        with torch.no_grad():
            if self.updates > 1:
                found["old"] = self.log_probs(rows)[0]
            if self.reference is not None:
                with self.handle.using(self.reference):
                    found["reference"] = self.log_probs(rows)[0]
        self._tell(idle_share(rewards, which))
        return found

    def log_probs(self, rows: Encoded) -> tuple[Tensor, Tensor]:
        """log p of the answers' tokens (tokens,), and the row of each."""
        logits, ids, row = self.task.answers(rows)
        return (logits / self.temperature).log_softmax(-1).gather(-1, ids[:, None])[:, 0], row

    def _tell(self, idle: float) -> None:
        self.groups, self.idle = self.groups + self.prompts, self.idle + self.prompts * idle
        if self.groups < GROUPS:
            return
        if self.idle > IDLE * self.groups:
            warnings.warn(
                f"in {self.idle / self.groups:.0%} of {self.groups} groups all answers earned the same reward, which "
                "teaches nothing: begin with a phase on examples (sft_grpo), or choose prompts of middling difficulty.",
                stacklevel=2,
            )
        self.groups, self.idle = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"used": self.used, "groups": self.groups, "idle": self.idle, "samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.used, self.groups, self.idle, self.samples = (state[k] for k in ("used", "groups", "idle", "samples"))


def _rows(samples: dict[str, Tensor]) -> Encoded:
    return Encoded(samples["ids"], samples["mask"], samples["answer"])
