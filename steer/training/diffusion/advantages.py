"""From rewards to advantages: how much better a sample is than what was to be expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Memory = dict[int, Tensor]
"""Prompt -> its latest rewards."""
Advantage = Callable[[Tensor, Tensor, Memory], Tensor]
"""(rewards (b,), prompts (b,), memory) -> advantages (b,); may change the memory."""

TINY = 1e-6  # beside a standard deviation


def over_batch(clip: float = 5.0) -> Advantage:
    """(r - mean) / std over the whole batch."""
    return lambda rewards, prompts, memory: _limited(rewards - rewards.mean(), rewards.std(correction=0), clip)


def over_history(window: int = 16, minimum: int = 16, clip: float = 5.0) -> Advantage:
    """(r - mean) / std over a prompt's last `window` rewards once it has `minimum`, till then over the batch (DDPO)."""

    def advantage(rewards: Tensor, prompts: Tensor, memory: Memory) -> Tensor:
        found = over_batch(clip)(rewards, prompts, memory)
        for prompt in prompts.unique().tolist():
            mine = prompts == prompt
            seen = torch.cat([memory.get(prompt, rewards[:0]), rewards[mine]])[-window:]
            memory[prompt] = seen
            if len(seen) >= minimum:
                found[mine] = _limited(rewards[mine] - seen.mean(), seen.std(correction=0), clip)
        return found

    return advantage


def over_group(spread: Literal["batch", "group", "none"] = "batch", clip: float = 5.0) -> Advantage:
    """r - mean over the samples of a prompt in this batch, divided by the std of the batch, of the group, or not."""

    def advantage(rewards: Tensor, prompts: Tensor, memory: Memory) -> Tensor:
        mean, std = group_statistics(rewards, prompts)
        scale = {"batch": rewards.std(correction=0).expand_as(std), "group": std, "none": torch.ones_like(std)}[spread]
        return _limited(rewards - mean, scale, clip)

    return advantage


def group_statistics(rewards: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population std (b,) of the rewards of each sample's prompt."""
    _, group = prompts.unique(return_inverse=True)
    count = torch.bincount(group).to(rewards)
    mean = (torch.zeros_like(count).index_add(0, group, rewards) / count)[group]
    variance = torch.zeros_like(count).index_add(0, group, (rewards - mean).square()) / count
    return mean, variance.sqrt()[group]


def idle_share(rewards: Tensor, prompts: Tensor) -> float:
    """Share of samples whose prompt's rewards are all equal: they teach nothing (arXiv 2310.20703)."""
    _, std = group_statistics(rewards, prompts)
    return (std <= TINY * rewards.abs().clamp_min(1)).float().mean().item()


def _limited(apart: Tensor, spread: Tensor, clip: float) -> Tensor:
    return (apart / (spread + TINY)).clamp(-clip, clip)
