"""Two distributions against each other: an amateur's (contrastive), or that of another prompt (cfg)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor

from steer.language.decode.decoder import Decoder
from steer.language.decode.ledger import Ledger
from steer.language.decode.stream import Around, Call, Forward, Stream, prepared


def plausible(logp: Tensor, alpha: float) -> Tensor:
    """Which tokens have p >= alpha max p: (rows, V) bool of log p (rows, V)."""
    return logp >= logp.amax(-1, keepdim=True) + (log(alpha) if alpha > 0 else -torch.inf)


@dataclass(frozen=True, eq=False)
class contrastive(Decoder):
    """What an expert prefers over an amateur: (1 + beta) log p_expert - beta log p_amateur where p_expert is plausible.

    Plausible are tokens with p_expert >= alpha max p_expert, all others never come (arXiv 2210.15097, in the form of
    2309.09117). `generate` is called on the expert. Raises ValueError for an amateur with another vocabulary, beta < 0,
    alpha outside [0, 1], and a prompt with images.
    """

    amateur: Any
    beta: float = 0.5
    alpha: float = 0.1

    def __post_init__(self):
        if not self.beta >= 0 or not 0 <= self.alpha <= 1:
            raise ValueError(f"beta = {self.beta}, alpha = {self.alpha}: expected beta >= 0 and 0 <= alpha <= 1.")

    @contextmanager
    def open(self, call: Call) -> Iterator[Stream]:
        call.text_only("contrastive")
        sizes = [model.config.get_text_config().vocab_size for model in (call.model, self.amateur)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"the amateur has {sizes[1]} tokens, the model {sizes[0]}: expected one tokenizer.")
        given, spent = prepared(self.amateur, call.ids, call.mask), Ledger()
        yield Contrast(Forward.of(call), Forward(self.amateur, call.ids, given, call.config, spent), self)
        call.ledger.amateur_tokens += spent.tokens


class Contrast(Around):
    def __init__(self, expert: Stream, amateur: Stream, how: contrastive):
        self.amateur, self.how = amateur, how
        super().__init__(expert)

    def score(self) -> Tensor:
        expert, amateur = (stream.logits.log_softmax(-1) for stream in (self.inner, self.amateur))
        scores = (1 + self.how.beta) * expert - self.how.beta * amateur
        return torch.where(plausible(expert, self.how.alpha), scores, -torch.inf)

    def push(self, tokens: Tensor) -> None:
        self.amateur.push(tokens)
        super().push(tokens)

    def gather(self, index: Tensor) -> None:
        self.amateur.gather(index)
        super().gather(index)


@dataclass(frozen=True, eq=False)
class cfg(Decoder):
    """Classifier-free guidance for text: log p(y | u) + scale (log p(y | x) - log p(y | u)), arXiv 2306.17806.

    Both branches run as one batch of twice the rows. scale = 1 is plain, above 1 away from the negative prompt u.

    negative  what a tokenizer gives for one prompt, or for as many as there are: `input_ids` and, where padded on the
              left, `attention_mask`. None: each prompt's last token

    Raises ValueError for another number of negative prompts, for empty ones, and for a prompt with images.
    """

    negative: Mapping[str, Tensor] | None = None
    scale: float = 1.5

    @contextmanager
    def open(self, call: Call) -> Iterator[Stream]:
        call.text_only("cfg")
        ids, mask = self._negative(call)
        width = max(ids.shape[1], call.ids.shape[1])
        ids = torch.cat([_left(call.ids, width), _left(ids, width)])
        mask = torch.cat([_left(call.mask, width), _left(mask, width)])
        given = prepared(call.model, ids, mask)
        both = Forward(call.model, ids, given, call.config, call.ledger, len(call.ids))
        yield Guided(both, call.ids, self.scale)

    def _negative(self, call: Call) -> tuple[Tensor, Tensor]:
        """ids and mask (prompts, columns)."""
        if self.negative is None:
            return call.ids[:, -1:], torch.ones_like(call.mask[:, -1:])
        ids = self.negative["input_ids"].to(call.ids.device)
        mask = self.negative.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask.to(ids.device)
        if len(ids) not in (1, len(call.ids)) or not bool((mask.sum(1) > 0).all()):
            raise ValueError(
                f"{len(ids)} negative prompts for {len(call.ids)} prompts: expected one, or one a prompt, none empty."
            )
        return ids.expand(len(call.ids), -1), mask.expand(len(call.ids), -1).to(call.mask.dtype)


class Guided(Stream):
    """The first half of the rows of `both` is the prompts', the second that of the negative prompts."""

    def __init__(self, both: Forward, ids: Tensor, scale: float):
        self.both, self.ids, self.scale = both, ids, scale
        self.origin = torch.arange(len(ids), device=ids.device)
        self.logits = self.score()

    def score(self) -> Tensor:
        wanted, other = self.both.logits.log_softmax(-1).chunk(2)
        return other + self.scale * (wanted - other)

    def push(self, tokens: Tensor) -> None:
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        self.both.push(tokens.repeat(2))
        self.logits = self.score()

    def gather(self, index: Tensor) -> None:
        self.both.gather(torch.cat([index, index + len(self.ids)]))
        self.ids, self.origin, self.logits = self.ids[index], self.origin[index], self.logits[index]


def _left(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (width - values.shape[1], 0))
