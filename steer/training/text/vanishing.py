"""Which prompts have nothing to teach under a reward: its spread, and the gradient that can be expected of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator

from steer.training.handle import Handle
from steer.training.text.task import TextTask


class Spread(NamedTuple):
    """Of one prompt: mean and population std of the reward of its answers, and the norm of its policy gradient."""

    prompt: str
    mean: float
    std: float
    gradient: float


def spreads(
    handle: Handle, task: TextTask, generator: Generator, prompts: Sequence[str] | None = None, each: int = 10
) -> list[Spread]:
    """The diagnostic of arXiv 2310.20703: |grad E r| is bounded by a power of std r, however bad the reward is.

    The gradient is sum_i (r_i - mean) grad log p(y_i | x) / each, not divided by the std, which would hide the effect;
    std and gradient come of disjoint answers, `each` for either: on the same ones, no spread is no gradient by
    construction. Scale rewards to [-1, 1] to compare tasks. Raises ValueError for fewer than two answers.
    """
    if each < 2:
        raise ValueError(f"{each} answer to a prompt has no spread: expected at least 2.")
    found = []
    for prompt in task.prompts if prompts is None else prompts:
        rewards = task.score(task.sample([prompt] * each, generator)[1], [prompt] * each)
        found.append(
            Spread(
                prompt,
                rewards.mean().item(),
                rewards.std(correction=0).item(),
                _norm(handle, task, generator, prompt, each),
            )
        )
    return found


def _norm(handle: Handle, task: TextTask, generator: Generator, prompt: str, each: int) -> float:
    rows, texts = task.sample([prompt] * each, generator)
    rewards = task.score(texts, [prompt] * each)
    logits, ids, row = task.answers(rows)
    logp = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    value = ((rewards - rewards.mean()).to(logp)[row] * logp).sum() / each
    gradients = torch.autograd.grad(value, list(handle.parameters.values()), allow_unused=True)
    return torch.nn.utils.get_total_norm([g for g in gradients if g is not None]).item()
