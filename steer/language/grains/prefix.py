"""Columns that are the same at every point of a line are computed once, and their keys and values kept."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from steer.language.inputs import Merged, head
from steer.language.tower import tower

Run = Callable[[Tensor, Tensor], Tensor]
"""Embeddings (n, T, d), columns (m,) -> logits (n, m, vocabulary) there."""
CACHE = ("cache", "past_key_values")
"""What decoders call their cache, in newer and older transformers."""


@torch.no_grad()
def resumed(model: Any, merged: Merged, start: int) -> Run | None:
    """What `replay` does, for embeddings and columns from `start` on; the gradient goes through those alone.

    None for a decoder that is given what cannot be cut at a column, such as the features of images.
    """
    from transformers import DynamicCache

    name = next((name for name in CACHE if name in merged.kwargs), None)
    known = (*CACHE, "attention_mask", "position_ids")
    if name is None or any(
        isinstance(value, (Tensor, dict)) and key not in known for key, value in merged.kwargs.items()
    ):
        return None
    before, behind = _cut(merged, start, first=True), _cut(merged, start, first=False)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    tower(model).decoder(**{**before, "inputs_embeds": merged.embeds[:, :start], name: cache, "use_cache": True})

    def run(embeds: Tensor, read: Tensor) -> Tensor:
        filled = deepcopy(cache)
        filled.batch_repeat_interleave(len(embeds))
        kwargs = Merged(merged.embeds, behind, merged.image).repeated(len(embeds))
        states = tower(model).decoder(**{**kwargs, "inputs_embeds": embeds, name: filled, "use_cache": True})[0]
        return head(model, states[:, read])

    return run


def _cut(merged: Merged, start: int, first: bool) -> dict[str, Any]:
    """A decoder's masks and positions for the columns before `start`, or for those from there on."""
    kwargs, own = dict(merged.kwargs), slice(None, start) if first else slice(start, None)
    mask, place = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if mask is not None and mask.ndim == 4:
        kwargs["attention_mask"] = mask[..., own, : start if first else None]
    elif mask is not None and first:
        kwargs["attention_mask"] = mask[:, :start]
    if place is not None:
        kwargs["position_ids"] = place[..., own]
    return kwargs
