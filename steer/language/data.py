"""What vectors are fitted to and models are scored on: preference pairs, choices, and rows of tokens made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Pair:
    """A prompt with a response that is wanted and one that is not; `image`, if any, is what its processor takes.

    Write the space between prompt and response at the head of the response ("A:", " Yes"): most tokenizers do. Raises
    ValueError for an empty text, a missing one, and responses that are the same.
    """

    prompt: str
    positive: str
    negative: str
    image: Any = field(default=None, repr=False)

    def __post_init__(self):
        for name in ("prompt", "positive", "negative"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ValueError(
                    f"{self!r}: {name} is {getattr(self, name)!r}; expected a text: a pair needs all three."
                )
        if self.positive == self.negative:
            raise ValueError(f"{self!r}: both responses are the same; expected two that differ.")

    @property
    def options(self) -> tuple[str, ...]:
        return self.positive, self.negative


@dataclass(frozen=True)
class Choices:
    """A prompt with two or more different responses, of which the first is right. Raises ValueError otherwise."""

    prompt: str
    options: tuple[str, ...]
    image: Any = field(default=None, repr=False)

    def __post_init__(self):
        if len(set(self.options)) != len(self.options) or len(self.options) < 2:
            raise ValueError(f"options {self.options}: expected at least two, all different, the right one first.")


@dataclass(frozen=True, eq=False)
class Encoded:
    """Rows of tokens, padded at the left to one width T.

    input_ids       (rows, T)
    attention_mask  (rows, T), 0 for padding
    answer          bool (rows, T), the tokens of the response
    types           what else a processor says of each token, (rows, T)
    pictures        what a processor made of each row's image, one mapping a row; empty without images
    """

    input_ids: Tensor
    attention_mask: Tensor
    answer: Tensor
    types: Mapping[str, Tensor] = field(default_factory=dict)
    pictures: tuple[Mapping[str, Tensor], ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> Tensor:
        """Tokens in each row, (rows,)."""
        return self.attention_mask.sum(1)

    @property
    def positions(self) -> Tensor:
        """The number of each token in its own row, (rows, T); 0 for padding."""
        return (self.attention_mask.cumsum(1) - 1).clamp_min(0)

    def take(self, index: Tensor) -> Encoded:
        """Some of the rows, without the columns in which all of them are padding."""
        width = int(self.lengths[index].max())
        ids, mask, answer = (part[index, -width:] for part in (self.input_ids, self.attention_mask, self.answer))
        types = {name: part[index, -width:] for name, part in self.types.items()}
        seen = tuple(self.pictures[k] for k in index.tolist()) if self.pictures else ()
        return Encoded(ids, mask, answer, types, seen)

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """What the model is called with."""
        seen = {name: torch.cat([row[name] for row in self.pictures]) for name in (self.pictures or ({},))[0]}
        tokens = {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **self.types}
        return {name: part.to(device) for name, part in {**tokens, **seen}.items()}


def encoded(
    tokenizer: Any, prompts: Sequence[str], responses: Sequence[str], images: Sequence[Any] | None = None
) -> Encoded:
    """Prompts, each with its response, as rows for teacher forcing.

    A prompt is tokenised alone, so that its tokens do not depend on the response. The response has the tokens that
    the joined text has after them, or its own where the tokenizer would merge across the seam. `tokenizer` is a
    transformers tokenizer, with images the model's processor; the prompt then contains its image token.
    Raises ValueError for unequal numbers, and for an empty prompt or response.
    """
    pictures = [None] * len(prompts) if images is None else list(images)
    if isinstance(prompts, str) or isinstance(responses, str) or not len(prompts) == len(responses) == len(pictures):
        raise ValueError(
            f"{len(prompts)} prompts, {len(responses)} responses and {len(pictures)} images: expected lists, "
            "one response (and image) a prompt."
        )
    if not len(prompts):
        raise ValueError("no prompts: expected at least one.")
    rows = [_row(tokenizer, *given) for given in zip(prompts, responses, pictures)]
    answers = [torch.arange(len(ids)) >= start for ids, start, _, _ in rows]
    types = {name: _left([types[name] for *_, types, _ in rows]) for name in rows[0][2]}
    seen = tuple(row[3] for row in rows) if images is not None else ()
    return Encoded(*_ids(tokenizer, [ids for ids, *_ in rows]), _left(answers), types, seen)


def whole(tokenizer: Any, texts: Sequence[str]) -> Encoded:
    """Texts without prompts: every token but the first, which nothing predicts, is an answer.

    Where the tokenizer puts a BOS before a text, that is the first. Raises ValueError for no texts and an empty one.
    """
    if isinstance(texts, str) or not len(texts) or not all(texts):
        raise ValueError(f"texts {texts!r:.80}: expected a list of at least one text, none empty.")
    rows = [torch.tensor(_tokens(language(tokenizer), text)) for text in texts]
    return joined(tokenizer, rows, [1] * len(rows))


def joined(tokenizer: Any, rows: Sequence[Tensor], starts: Sequence[int]) -> Encoded:
    """Rows of ids (t,), whose responses begin where `starts` says."""
    return Encoded(*_ids(tokenizer, rows), _left([torch.arange(len(row)) >= k for row, k in zip(rows, starts)]))


def language(tokenizer: Any) -> Any:
    """The tokenizer inside a processor, or itself."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def chat(tokenizer: Any, user: str, system: str | None = None) -> str:
    """A user's message as the prompt of a chat model, up to where its answer begins.

    Raises ValueError for a tokenizer without a chat template.
    """
    if not tokenizer.chat_template:
        raise ValueError(f"{type(tokenizer).__name__} has no chat template; expected that of an instruct model.")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _row(
    tokenizer: Any, prompt: str, response: str, image: Any
) -> tuple[Tensor, int, dict[str, Tensor], dict[str, Tensor]]:
    """ids (t,), where the response begins, what is said of each token, the picture."""
    if not prompt.strip() or not response:
        which = "response" if prompt.strip() else "prompt"
        raise ValueError(f"empty {which} (prompt {prompt!r}, response {response!r}): expected a text.")
    text = language(tokenizer)
    before, joined = _tokens(text, prompt), _tokens(text, prompt + response)
    after = joined[len(before) :] if joined[: len(before)] == before else []
    after = after or text(response, add_special_tokens=False)["input_ids"]
    if not after:
        raise ValueError(f"response {response!r} has no tokens: expected at least one.")
    if image is None:
        return torch.tensor(before + after), len(before), {}, {}
    batch = tokenizer(text=[prompt], images=[image], return_tensors="pt", **_special(text, prompt))
    ids, about, picture = batch["input_ids"], {}, {}
    # PaliGemma reads 1 as "of the suffix, causal"; for all others 0 is text
    kind = int(type(tokenizer).__name__.startswith("PaliGemma"))
    for name in batch.keys() - {"input_ids", "attention_mask"}:
        if batch[name].shape == ids.shape:
            about[name] = torch.cat([batch[name][0], batch[name].new_full((len(after),), kind)])
        else:
            picture[name] = batch[name]
    return torch.cat([ids[0], ids.new_tensor(after)]), ids.shape[1], about, picture


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, **_special(tokenizer, text))["input_ids"]


def _special(tokenizer: Any, text: str) -> dict[str, bool]:
    """A text with a BOS, such as a chat template writes, is not given another."""
    has = tokenizer.bos_token and text.startswith(tokenizer.bos_token)
    return {"add_special_tokens": False} if has else {}


def _ids(tokenizer: Any, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    pad = language(tokenizer).pad_token_id
    return _left(rows, pad or 0), _left([torch.ones_like(row) for row in rows])


def _left(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side="left")
