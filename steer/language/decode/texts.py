"""From tokens to texts, and from texts to scores that may fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steer.language.decode.ledger import Ledger
from steer.language.decode.stream import Call

Reward = Callable[[list[str], list[str]], Tensor]
"""(texts, their prompts) -> (b,), higher is better; NaN and +-inf have failed."""


class Texts:
    """What rewards read: texts without special tokens, and the prompts as the model has them, padding apart.

    Raises ValueError for what is no tokenizer or processor.
    """

    def __init__(self, tokenizer: Any, call: Call):
        if not hasattr(tokenizer, "batch_decode"):
            raise ValueError(
                f"tokenizer {tokenizer!r}: expected the model's tokenizer or processor, which turns tokens into the "
                "texts that a reward reads."
            )
        self.tokenizer = tokenizer
        prompts = [row[real.bool()].tolist() for row, real in zip(call.ids, call.mask)]
        self.prompts: list[str] = tokenizer.batch_decode(prompts)

    def __call__(self, tokens: list[Tensor]) -> list[str]:
        return self.tokenizer.batch_decode([row.tolist() for row in tokens], skip_special_tokens=True)


def scored(reward: Reward, texts: list[str], prompts: list[str], ledger: Ledger) -> Tensor:
    """(b,) float32 on the CPU, -inf where the reward is not finite.

    Raises ValueError for a reward of another shape.
    """
    if not texts:
        return torch.zeros(0)
    ledger.reward_calls += len(texts)
    found = torch.as_tensor(reward(texts, prompts)).detach().float().cpu()
    if found.shape != (len(texts),):
        raise ValueError(f"{reward!r} returned shape {tuple(found.shape)}; expected one score a text: ({len(texts)},).")
    return torch.where(torch.isfinite(found), found, -torch.inf)
