"""Rows of text that grow by one token at a time and can be gathered: a model with its cache, or something around it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steer.language.decode.ledger import Ledger
from steer.language.passes import rows_of

AXES = {"attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0, "position_ids": -2}
"""What `generate` keeps a row of for each text, and its axis of rows: multimodal positions have three in front."""
TEXT = {*AXES, "cache", "past_key_values", "use_cache", "logits_to_keep"}
"""What a model is given for text alone."""


@dataclass(eq=False)
class Call:
    """What `generate` hands to a decoder.

    ids     (prompts, columns) left-padded
    kwargs  what the model is given beside them: `attention_mask` (prompts, columns), positions, an empty cache, ...
    """

    model: Any
    ids: Tensor
    kwargs: dict[str, Any]
    config: Any
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def mask(self) -> Tensor:
        return self.kwargs["attention_mask"]

    def text_only(self, who: str) -> None:
        """Raises ValueError where the prompt holds more than text."""
        if other := sorted(name for name, value in self.kwargs.items() if value is not None and name not in TEXT):
            raise ValueError(f"{who} takes prompts of text alone, and was given {other}.")


class Stream:
    """Rows: ids (rows, columns) so far, logits (rows, V) float32 of the next token, origin (rows,), their prompts."""

    ids: Tensor
    logits: Tensor
    origin: Tensor

    def push(self, tokens: Tensor) -> None:
        """Row i goes on with tokens[i]."""
        raise NotImplementedError

    def gather(self, index: Tensor) -> None:
        """Row i becomes what row index[i] was: text, cache, mask and logits together."""
        raise NotImplementedError


class Forward(Stream):
    """The model itself: one prefill, then one column a push, on a dynamic cache. Row i begins as prompt i % prompts."""

    def __init__(
        self,
        model: Any,
        ids: Tensor,
        kwargs: dict[str, Any],
        config: Any,
        ledger: Ledger,
        prompts: int | None = None,
    ):
        self.model, self.ids, self.kwargs, self.ledger = model, ids, dict(kwargs), ledger
        self.origin = torch.arange(len(ids), device=ids.device) % (prompts or len(ids))
        self.cache = forkable(kwargs.get("cache", kwargs.get("past_key_values")))
        ledger.tokens += len(ids) * (self.kwargs["attention_mask"].shape[1] - self.cache.get_seq_length())
        with rows_of(self.origin):
            self._take(model._prefill(ids, config, self.kwargs))

    @classmethod
    def of(cls, call: Call) -> Forward:
        return cls(call.model, call.ids, call.kwargs, call.config, call.ledger)

    def push(self, tokens: Tensor) -> None:
        self.extend(tokens[:, None])

    def extend(self, tokens: Tensor) -> None:
        """Go on with tokens (rows, columns); mask and positions in `kwargs` reach as far."""
        self.ids = torch.cat([self.ids, tokens], 1)
        inputs = self.model.prepare_inputs_for_generation(self.ids, next_sequence_length=tokens.shape[1], **self.kwargs)
        self.ledger.tokens += tokens.numel()
        with rows_of(self.origin):
            self._take(self.model(**inputs, return_dict=True))

    def gather(self, index: Tensor) -> None:
        rows = len(self.ids)
        if len(index) == rows and bool((index == torch.arange(rows, device=index.device)).all()):
            return
        self.ids, self.logits, self.origin = self.ids[index], self.logits[index], self.origin[index]
        for name, axis in AXES.items():
            value = self.kwargs.get(name)
            if value is not None and value.shape[axis] == rows:
                self.kwargs[name] = value.index_select(axis, index)
        self.cache.batch_select_indices(index)

    def _take(self, outputs: Any) -> None:
        self.kwargs = self.model._update_model_kwargs_for_generation(outputs, self.kwargs)
        self.logits = outputs.logits[:, -1].to(self.ids.device, torch.float32, copy=True)


class Around(Stream):
    """Another view of the next token of a stream: `score()` gives the logits."""

    def __init__(self, inner: Stream):
        self.inner = inner
        self.logits = self.score()

    @property
    def ids(self) -> Tensor:  # type: ignore[override]
        return self.inner.ids

    @property
    def origin(self) -> Tensor:  # type: ignore[override]
        return self.inner.origin

    def score(self) -> Tensor:
        raise NotImplementedError

    def push(self, tokens: Tensor) -> None:
        self.inner.push(tokens)
        self.logits = self.score()

    def gather(self, index: Tensor) -> None:
        self.inner.gather(index)
        self.logits = self.logits[index]


def prepared(model: Any, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """What `generate` would give a model beside ids (rows, columns) that are left-padded."""
    from transformers import DynamicCache

    takes, cache = inspect.signature(model.forward).parameters, DynamicCache(config=model.config.get_text_config())
    given = {"attention_mask": mask, "use_cache": True, cache_name(model): cache}
    if "position_ids" in takes:
        given["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)
    return given | ({"logits_to_keep": 1} if "logits_to_keep" in takes else {})


def cache_name(model: Any) -> str:
    """What a model calls its cache: transformers has renamed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def forkable(cache: Any) -> Any:
    """A cache whose rows can be copied and dropped, or ValueError."""
    from transformers import cache_utils as c

    if cache is None:
        raise ValueError("no cache: guided decoding continues one; expected use_cache=True.")
    kinds = (c.DynamicLayer, c.DynamicSlidingWindowLayer, getattr(c, "DummyLayer", c.DynamicLayer))
    other = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in kinds})
    if not isinstance(cache, c.DynamicCache) or other:
        raise ValueError(
            f"a {type(cache).__name__}{f' with {other}' if other else ''} cannot copy and drop rows: expected a "
            "DynamicCache of full or sliding attention. Leave cache_implementation unset."
        )
    return cache
