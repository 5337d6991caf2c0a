"""Make attention heads look at what the user marks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from steer.language.decode.decoder import Decoder
from steer.language.decode.stream import Call, Forward, Stream
from steer.language.tower import Site, module_at, tower


@dataclass(frozen=True, eq=False)
class pasta(Decoder):
    """Post-hoc attention steering (arXiv 2311.02262): chosen heads attend `alpha` times less to what is not marked.

    At those heads log alpha is added to the attention scores of the prompt's tokens that are not marked, so that after
    the softmax a_ij becomes alpha a_ij / C there, and a_ij / C at marked and at generated tokens. alpha = 1 is plain.

    marked  (prompts, columns) bool: the prompt's tokens to look at
    heads   block -> its heads; None: all heads of all blocks. The paper profiles them: pass those that help

    Raises ValueError for marks of another shape, a block or head that the model does not have, alpha outside (0, 1],
    and an attention implementation that takes no mask of numbers (expected "eager" or "sdpa").
    """

    marked: Tensor
    heads: Mapping[int, Sequence[int]] | None = None
    alpha: float = 0.01

    def __post_init__(self):
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha = {self.alpha}: expected a factor in (0, 1].")

    @contextmanager
    def open(self, call: Call) -> Iterator[Stream]:
        config = call.model.config.get_text_config()
        if config._attn_implementation not in ("eager", "sdpa"):
            raise ValueError(
                f"attention {config._attn_implementation!r} takes no mask of numbers: expected 'eager' or 'sdpa'; "
                "load the model with attn_implementation='sdpa'."
            )
        if self.marked.shape != call.ids.shape or self.marked.dtype != torch.bool:
            raise ValueError(
                f"marked is {self.marked.dtype} {tuple(self.marked.shape)}; expected bool {tuple(call.ids.shape)}, one "
                "for each column of the prompts, padding counted."
            )
        unmarked = ~self.marked.to(call.ids.device)
        biases = [
            Bias(layer, (log(self.alpha) * unmarked)[:, None] * on[:, None]) for layer, on in self._heads(call).items()
        ]
        with ExitStack() as undo:
            for bias in biases:
                module = module_at(call.model, Site(bias.layer, "attention"))
                undo.callback(module.register_forward_pre_hook(bias, with_kwargs=True).remove)
            yield Biased(call, biases)

    def _heads(self, call: Call) -> dict[int, Tensor]:
        """Block -> (heads,) which of its heads are steered."""
        blocks, count = len(tower(call.model).blocks), call.model.config.get_text_config().num_attention_heads
        every = {layer: range(count) for layer in range(blocks)} if self.heads is None else self.heads
        chosen = {}
        for layer, heads in every.items():
            if not 0 <= layer < blocks or not all(0 <= h < count for h in heads):
                raise ValueError(
                    f"heads {list(heads)} of block {layer}: the model has {blocks} blocks of {count} heads, numbered "
                    "from 0."
                )
            on = torch.zeros(count, device=call.ids.device)
            on[list(heads)] = 1
            chosen[layer] = on
        return chosen


class Biased(Forward):
    """Tells the biases which prompt each row is of."""

    def __init__(self, call: Call, biases: Sequence[Bias]):
        self.biases = biases
        super().__init__(call.model, call.ids, call.kwargs, call.config, call.ledger)

    def extend(self, tokens: Tensor) -> None:
        for bias in self.biases:
            bias.origin = self.origin
        super().extend(tokens)


@dataclass(eq=False)
class Bias:
    """What one block's attention adds to its mask, as a hook before it: scores (prompts, heads, columns)."""

    layer: int
    scores: Tensor
    origin: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if "attention_mask" not in kwargs:
            raise ValueError(f"{type(module).__name__} of block {self.layer} is not given its mask by name.")
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        length, first = cache.get_mask_sizes(states.shape[1], self.layer)
        start = cache.get_seq_length(self.layer)
        mask = numbers(kwargs["attention_mask"], states, length, start - first)
        scores = self.scores if self.origin is None else self.scores[self.origin]
        scores = torch.nn.functional.pad(scores, (0, max(first + length - scores.shape[-1], 0)))
        scores = scores[..., None, first : first + length].to(mask.dtype)
        return args, {**kwargs, "attention_mask": mask + scores}


def numbers(mask: Tensor | None, states: Tensor, length: int, past: int) -> Tensor:
    """A mask as numbers to add (rows or 1, 1, queries, keys): from one of numbers, a bool one, or None, the causal."""
    if mask is None:
        queries = torch.arange(states.shape[1], device=states.device)[:, None] + past
        mask = (torch.arange(length, device=states.device) <= queries)[None, None]
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, torch.finfo(states.dtype).min)
