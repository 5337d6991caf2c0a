"""What a language model is doing right now: which columns its pass computes, and where its prompt ends.

A decoder layer is told neither. One hook before the decoder reads the length of the cache, one around the model the
padding and the tokens, and a wrapper around `generate` where the prompt ends: a rule such as "an empty cache means the
prompt" fails without a cache, in chunks, with beams and with assistants.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from steer.language.tower import tower


@dataclass(frozen=True)
class Pass:
    """Columns [start, start + count) of every row; a column is a place in the padded sequence, 0 first.

    prompt  columns of the prompt, or None outside `generate`
    pads    (rows, 1) columns of padding at the left of each row, or None if the pass was not told
    tokens  (rows, count) ids that the model was given, or None for embeddings
    """

    start: int
    count: int
    prompt: int | None
    pads: Tensor | None
    tokens: Tensor | None


ORIGIN: ContextVar[Tensor | None] = ContextVar("origin", default=None)
"""(rows,) which prompt each row of the running pass is of, where a decoder drops and copies rows."""


@contextmanager
def rows_of(origin: Tensor) -> Iterator[None]:
    """While it is open, row i of every pass is of prompt origin[i], which gets what is meant for that prompt."""
    token = ORIGIN.set(origin)
    try:
        yield
    finally:
        ORIGIN.reset(token)


def repeated(values: Tensor, rows: int) -> Tensor:
    """One entry for each row that runs: beams of a prompt lie side by side. Raises ValueError where it is not even."""
    origin = ORIGIN.get()
    if origin is not None and len(origin) == rows and len(values) > 1:
        return values[origin.to(values.device)]
    if rows % len(values):
        raise ValueError(f"{len(values)} rows were given, and a batch of {rows} runs: expected a multiple.")
    return values if rows == len(values) else values.repeat_interleave(rows // len(values), 0)


class Tracker:
    """Follows one model; `now` is the pass that its decoder is running, or ran last."""

    def __init__(self, model: Any):
        self.model = model
        self.now: Pass | None = None
        self.users = 0
        self._generating: tuple[int, Tensor | None] | None = None
        self._told: dict[str, Tensor] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Tracker:
        self.users += 1
        if self.users == 1:
            decoder = tower(self.model).decoder
            hooks = [
                self.model.register_forward_pre_hook(self._before_model, with_kwargs=True),
                self.model.register_forward_hook(self._after_model, always_call=True),
                decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            ]
            for hook in hooks:
                self._undo.callback(hook.remove)
            self._undo.enter_context(_wrapped(self.model, "generate", self._generate))
        return self

    def __exit__(self, *error: object) -> None:
        self.users -= 1
        if not self.users:
            TRACKERS.pop(self.model, None)
            self._undo.close()

    def _generate(self, inner: Any, *args: Any, **kwargs: Any) -> Any:
        """The outermost call knows where the prompt ends; calls inside of it, of a decoder of blocks, go on from it."""
        if self._generating is not None:
            return inner(*args, **kwargs)
        inputs = args[0] if args else next((kwargs[k] for k in PROMPTS if kwargs.get(k) is not None), None)
        mask = kwargs.get("attention_mask")
        length = getattr(inputs, "shape", (0, 1))[1]  # none given: a lone BOS
        self._generating = length, None if mask is None or mask.ndim != 2 else _pads(mask)
        try:
            return inner(*args, **kwargs)
        finally:
            self._generating = None

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        self._told = {"tokens": ids} if isinstance(ids, Tensor) else {}
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self._told["pads"] = _pads(mask)

    def _after_model(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._told = {}

    def _before_decoder(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("inputs_embeds")
        given = kwargs.get("input_ids", args[0] if args else None) if given is None else given
        # its name differs between releases of transformers: past_key_values, cache
        cache = next((value for value in kwargs.values() if hasattr(value, "get_seq_length")), None)
        start = 0 if cache is None else int(cache.get_seq_length())
        prompt, pads = self._generating or (None, None)
        tokens = self._told.get("tokens")
        if tokens is not None and tokens.shape[:2] != given.shape[:2]:
            tokens = None
        pads = self._told.get("pads", None if pads is None else repeated(pads, len(given)))
        self.now = Pass(start, given.shape[1], prompt, pads, tokens)


PROMPTS = ("inputs", "input_ids", "inputs_embeds")
TRACKERS: WeakKeyDictionary[nn.Module, Tracker] = WeakKeyDictionary()


@contextmanager
def tracked(model: Any) -> Iterator[Tracker]:
    """Follow a model; however many do so at once, it has one set of hooks, and they may stop in any order."""
    tracker = TRACKERS.get(model) or Tracker(model)
    with tracker:
        TRACKERS[model] = tracker
        yield tracker


def _pads(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) == 0).sum(1, keepdim=True)


@contextmanager
def _wrapped(owner: Any, name: str, around: Any) -> Iterator[None]:
    """Replace a method of one object by `around(inner, ...)`, and put back what was there."""
    before, inner = owner.__dict__.get(name), getattr(owner, name, None)
    if inner is None:  # a bare decoder does not generate
        yield
        return
    setattr(owner, name, functools.wraps(inner)(functools.partial(around, inner)))
    try:
        yield
    finally:
        delattr(owner, name) if before is None else setattr(owner, name, before)
