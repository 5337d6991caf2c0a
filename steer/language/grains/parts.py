"""A pair as tokens, and what the decoder is given for it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer.language.data import Encoded, Pair, encoded, language
from steer.language.inputs import Merged, captured


@dataclass(frozen=True, eq=False)
class Parts:
    """A prompt with its preferred response, and with the other: one row of tokens each, unpadded."""

    model: Any
    rows: tuple[Encoded, Encoded]

    @property
    def ids(self) -> Tensor:
        """The prompt's tokens (P,); those of an image count."""
        return self.rows[0].input_ids[~self.rows[0].answer]

    @property
    def responses(self) -> tuple[Tensor, Tensor]:
        """The tokens of both responses."""
        first, second = (row.input_ids[row.answer] for row in self.rows)
        return first, second

    @property
    def pictured(self) -> bool:
        return bool(self.rows[0].pictures)

    def alone(self, which: int, cut: int) -> Merged:
        """The prompt and one response without its last `cut` tokens."""
        row = self.rows[which]
        inputs, length = row.inputs(self.model.device), row.input_ids.shape[1] - cut
        each = ("input_ids", "attention_mask", *row.types)
        return self._captured({name: part[:, :length] if name in each else part for name, part in inputs.items()})

    def joined(self, behind: Tensor, mask: Tensor, place: Tensor) -> Merged:
        """The prompt and both responses behind it, with who sees whom (T, T), bool, and the positions (T,)."""
        ids, seen = torch.cat([self.ids, behind])[None], mask[None, None]
        if self.model.config.get_text_config(decoder=True)._attn_implementation == "eager":  # it adds its mask
            seen = torch.zeros_like(seen, dtype=self.model.dtype).masked_fill(~seen, torch.finfo(self.model.dtype).min)
        inputs = {"input_ids": ids, "attention_mask": seen, "position_ids": place[None]}
        return self._captured({name: part.to(self.model.device) for name, part in inputs.items()})

    def _captured(self, inputs: dict[str, Tensor]) -> Merged:
        brief = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        return captured(self.model, **inputs, **({"logits_to_keep": 1} if brief else {}))


def parts(model: Any, tokenizer: Any, pair: Pair) -> Parts:
    """Read a pair; errors are those of `encoded`."""
    images = None if pair.image is None else [pair.image]
    first, second = (encoded(tokenizer, [pair.prompt], [text], images) for text in pair.options)
    return Parts(model, (first, second))


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of some prompts, each as `encoded` has it: with one BOS, also where a chat template has written it."""
    words = language(tokenizer)
    written = [bool(words.bos_token) and prompt.startswith(words.bos_token) for prompt in prompts]
    return [words(prompt, add_special_tokens=not bos)["input_ids"] for prompt, bos in zip(prompts, written)]
