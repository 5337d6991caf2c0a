"""Token by token: every step asks a value how each of the likeliest next tokens would do."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer.language.decode.decoder import Decoder, plain
from steer.language.decode.ledger import Ledger
from steer.language.decode.stream import Around, Call, Stream
from steer.language.decode.texts import Reward, Texts, scored


@dataclass(frozen=True)
class value_guided(Decoder):
    """logit(y_t) + weight V(x, y_1..t) among the k likeliest next tokens; no other comes.

    With V = log p(attribute | text) this is FUDGE (arXiv 2104.05218, k = 200), with a reward of the prefix ARGS (arXiv
    2402.01694, k = 10). weight = 0 is top-k sampling. k texts are scored for every token.

    value      (texts, prompts) -> (b,); each text is a candidate's, its next token included. NaN and +-inf have
               failed: that token does not come, unless all have failed
    tokenizer  the model's tokenizer or processor
    source     where the next tokens come from

    Raises ValueError for k < 1.
    """

    value: Reward
    tokenizer: Any
    weight: float = 1.0
    k: int = 10
    source: Decoder = plain

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k = {self.k}: expected at least one token to choose from.")
        if not isinstance(self.source, Decoder) or self.source.n != 1:
            raise ValueError(f"source {self.source!r}: expected a decoder that does not search, as plain or cfg().")

    @contextmanager
    def open(self, call: Call) -> Iterator[Stream]:
        texts = Texts(self.tokenizer, call)
        with self.source.open(call) as inner:
            yield Valued(self, inner, texts, call)


class Valued(Around):
    def __init__(self, how: value_guided, inner: Stream, texts: Texts, call: Call):
        self.how, self.texts, self.columns = how, texts, call.ids.shape[1]
        self.ledger: Ledger = call.ledger
        super().__init__(inner)

    def score(self) -> Tensor:
        logits = self.inner.logits
        top, tokens = logits.topk(min(self.how.k, logits.shape[1]), -1)
        values = self._values(tokens).to(top.device)
        top = torch.where(torch.isneginf(values), values, top + self.how.weight * values)
        return torch.full_like(logits, -torch.inf).scatter(1, tokens, top)

    def _values(self, tokens: Tensor) -> Tensor:
        """(rows, k)."""
        said = self.ids[:, self.columns :, None].expand(-1, -1, tokens.shape[1]).transpose(1, 2)
        longer = torch.cat([said, tokens[..., None]], -1).flatten(0, 1)
        prompts = [self.texts.prompts[p] for p in self.origin.tolist() for _ in range(tokens.shape[1])]
        values = scored(self.how.value, self.texts([*longer]), prompts, self.ledger).view(tokens.shape)
        failed = torch.isneginf(values).all(1, keepdim=True)
        if failed.any():
            warnings.warn("all values of a row are NaN or infinite; its next token is the model's own.", stacklevel=2)
        return values.masked_fill(failed, 0)
