"""A tiny language model with questions, answers and a reward, for the tests of training on texts."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import tiny_models
import torch
from torch import Tensor

from steer.language.data import Encoded, Pair
from steer.training.text import Example, TextTask

EXAMPLES = [
    Example("Is the cat good?", " Yes"),
    Example("Is it red?", " No no"),
    Pair("the dog", " is sad", " is happy"),
    Example("I", " and you"),
    Example("Is the dog blue?", " not blue and not red"),
    Example("you", " happy"),
]
PROMPTS = ["Is the cat good?", "the dog", "I", "Is it red?"]


def happy(texts: list[str], prompts: list[str]) -> Tensor:
    """The share of an answer's characters that are a, of the first four."""
    return torch.tensor([text[:4].count("a") / 4 for text in texts])


def task(name: str = "llama", **options: Any) -> TextTask:
    """On a model of its own."""
    model = deepcopy(tiny_models.text_model(name))
    options = {"examples": EXAMPLES, "reward": happy, "tokens": 4, **options}
    return TextTask(model, tiny_models.tokenizer(), **options)


def logp_of(model: Any, batch: Encoded) -> list[Tensor]:
    """log p of the answer's tokens of each row, run by itself without padding."""
    found = []
    for ids, mask, answer in zip(batch.input_ids, batch.attention_mask, batch.answer):
        ids, said = ids[mask.bool()], answer[mask.bool()]
        logits = model(ids[None]).logits[0].log_softmax(-1)
        found.append(logits[:-1].gather(-1, ids[1:, None])[said[1:], 0])
    return found


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
