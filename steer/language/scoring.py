"""How likely a language model finds texts: log-probabilities of responses, margins of pairs, choices, perplexity."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.language.data import Choices, Encoded, Pair, encoded, language, whole
from steer.rewards.border import unknown
from steer.rewards.text import TextReward

Reduction = Literal["mean", "sum"]
TOKENS, LOGITS = 4096, 2**25
"""The most tokens, and the most logits (in float32 128 MiB of them), of one pass."""


@torch.no_grad()
def log_probs(model: Any, rows: Encoded, reduction: Reduction = "mean") -> Tensor:
    """log p(y | x) of each row's response, (rows,) in float32 or finer, on the model's device.

        sum over the tokens t of y of log p(y_t | x, y_<t), or its mean over them, which does not favour short ones

    The head runs on the columns of responses only; rows go through the model in chunks of at most `TOKENS` tokens,
    those of like length together. Whatever steers the model steers the scores. No gradient.
    Raises ValueError for a row that is longer than the model's context or has no response, and for ids that the model
    does not know.
    """
    if reduction not in ("mean", "sum"):
        raise unknown("reduction", reduction, ("mean", "sum"))
    usable(model, rows)
    found = torch.empty(len(rows), dtype=torch.promote_types(model.dtype, torch.float32), device=model.device)
    for index in chunks(rows, model.get_input_embeddings().weight.shape[0]):
        found[index.to(found.device)] = _summed(model, rows.take(index))
    return found / rows.answer.sum(1).to(found.device) if reduction == "mean" else found


def margins(model: Any, tokenizer: Any, pairs: Sequence[Pair], reduction: Reduction = "mean") -> Tensor:
    """log p(positive | prompt) - log p(negative | prompt) of each pair, (n,); reductions and errors of `log_probs`."""
    matched(model, tokenizer)
    pairs = list(pairs)
    responses = [pair.positive for pair in pairs] + [pair.negative for pair in pairs]
    positive, negative = log_probs(model, answered(tokenizer, pairs * 2, responses), reduction).chunk(2)
    return positive - negative


def chosen(model: Any, tokenizer: Any, questions: Sequence[Pair | Choices]) -> Tensor:
    """The number of each question's likeliest option by the mean over its tokens, (n,) int64: 0 is the right one."""
    matched(model, tokenizer)
    asked = [question for question in questions for _ in question.options]
    options = [option for question in questions for option in question.options]
    scores = log_probs(model, answered(tokenizer, asked, options)).split([len(q.options) for q in questions])
    return torch.stack([each.argmax() for each in scores])


def choice_accuracy(model: Any, tokenizer: Any, questions: Sequence[Pair | Choices]) -> float:
    """The share of questions whose right option is the likeliest one, length-normalised; each one: `chosen`."""
    return (chosen(model, tokenizer, questions) == 0).double().mean().item()


def perplexity(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """exp of minus the mean log-probability over all tokens of the texts, but the first of each.

    Raises ValueError for a text of one token, and for one that is longer than the context: cut it.
    """
    matched(model, tokenizer)
    rows = whole(tokenizer, texts)
    if (shortest := rows.lengths.min()) < 2:
        raise ValueError(f"text {texts[int(rows.lengths.argmin())]!r} has {int(shortest)} token: expected two or more.")
    return math.exp(-float(log_probs(model, rows, "sum").sum() / rows.answer.sum().to(model.device)))


def matched(model: Any, tokenizer: Any) -> None:
    """Raises ValueError for a tokenizer with more tokens than the model embeds: it belongs to another model."""
    tokens, known = len(language(tokenizer)), model.get_input_embeddings().weight.shape[0]
    if tokens > known:
        raise ValueError(
            f"the tokenizer has {tokens} tokens, {type(model).__name__} embeds {known}: expected the model's own "
            "tokenizer, or model.resize_token_embeddings(len(tokenizer)) for added ones."
        )


@dataclass(frozen=True)
class LogProb(TextReward):
    """log p(text | prompt) by a language model, its mean or sum over tokens, in (-inf, 0]; an empty text has NaN.

    By the model that writes, it prefers its likely texts; by another, texts of that one's taste. Raises ValueError as
    `log_probs` and `matched`.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    reduction: Reduction = "mean"
    name: str = field(init=False)

    def __post_init__(self):
        matched(self.model, self.tokenizer)
        object.__setattr__(self, "name", self.model.config.name_or_path or type(self.model).__name__)

    def score(self, texts: list[str], prompts: list[str]) -> Tensor:
        found = torch.full((len(texts),), torch.nan)
        some = [k for k, text in enumerate(texts) if text]
        if some:
            rows = encoded(self.tokenizer, [prompts[k] for k in some], [texts[k] for k in some])
            found[some] = log_probs(self.model, rows, self.reduction).to(found)
        return found


def answered(tokenizer: Any, asked: Sequence[Pair | Choices], responses: Sequence[str]) -> Encoded:
    images = [question.image for question in asked]
    given = None if all(image is None for image in images) else images
    if given is not None and any(image is None for image in given):
        raise ValueError("some of the questions have an image and some have none: score them in two calls.")
    return encoded(tokenizer, [question.prompt for question in asked], responses, given)


def usable(model: Any, rows: Encoded) -> None:
    """Raises ValueError for a row without a response or longer than the context, and for ids that are not embedded."""
    first = rows.answer & (rows.attention_mask.cumsum(1) == 1)
    if not bool(rows.answer.any(1).all()) or bool(first.any()):
        raise ValueError("a row without a response, or with nothing before it: expected a prompt and a response.")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest, row = rows.lengths.max(0)
    if context is not None and longest > context:
        raise ValueError(
            f"row {int(row)} has {int(longest)} tokens, and the context of {type(model).__name__} is {context}: "
            "shorten its prompt."
        )
    largest, known = int(rows.input_ids.max()), model.get_input_embeddings().weight.shape[0]
    if largest >= known:
        raise ValueError(f"token {largest} with a model that embeds {known}: expected the model's own tokenizer.")


def chunks(rows: Encoded, vocabulary: int) -> Iterator[Tensor]:
    """Indices of rows that go together, longest rows first: the peak of memory comes at once."""
    lengths, widest = rows.lengths.cpu(), int(rows.answer.sum(1).max()) + 1
    order = lengths.argsort(descending=True, stable=True)
    while len(order):
        count = max(1, min(TOKENS // int(lengths[order[0]]), LOGITS // (widest * vocabulary)))
        yield order[:count]
        order = order[count:]


def answer_logits(model: Any, rows: Encoded, call: Any = None) -> tuple[Tensor, Tensor, Tensor]:
    """What predicts each token of the responses, of one pass, with a graph where one is wanted.

    Logits (tokens, vocabulary) in float32 or finer, the tokens themselves (tokens,), and the row of each (tokens,);
    `call` is what runs in the model's place, if anything does.

    The model's own `forward` makes the logits, not its decoder and head by hand: it knows the soft caps and scales of
    its family, and what its images need. They end at the last column but one: a column predicts the next.
    """
    inputs, answer = rows.inputs(model.device), rows.answer.to(model.device)
    columns = answer.shape[1] - int(answer.int().argmax(1).min())
    accepted = inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = columns + 1
    # a model of text and images counts positions by itself, on three axes in some families
    if "position_ids" in accepted and model.config.get_text_config() is model.config:
        inputs["position_ids"] = rows.positions.to(model.device)
    logits = (call or model)(**inputs, use_cache=False).logits[:, -columns - 1 : -1]
    answer, ids = answer[:, -columns:], inputs["input_ids"][:, -columns:]
    exact = torch.promote_types(logits.dtype, torch.float32)
    return logits[answer].to(exact), ids[answer], answer.nonzero()[:, 0]


def _summed(model: Any, rows: Encoded) -> Tensor:
    """Sums of log-probabilities of the responses, (rows,), of one pass."""
    logits, ids, row = answer_logits(model, rows)
    losses = F.cross_entropy(logits, ids, reduction="none")
    return losses.new_zeros(len(rows)).index_add(0, row, -losses)
