"""Read the states at sites: with own hooks, as `output_hidden_states` misses edits and norms the last layer."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steer.language.edits import norm
from steer.language.hooks import Change, hooked
from steer.language.tower import Site, resolved

Place = Site | int | str


@contextmanager
def recording(model: Any, sites: Iterable[Place], gradient: bool = False) -> Iterator[dict[Site, list[Tensor]]]:
    """Site -> the states (rows, tokens, width) of every pass while it is open, one entry a pass.

    They are detached copies, or with `gradient` the very tensors. What an edit that was opened before does is seen.
    Raises ValueError for a site that the model does not have.
    """
    found: dict[Site, list[Tensor]] = {resolved(model, place): [] for place in sites}

    def noting(place: Site) -> Change:
        return lambda hidden: found[place].append(hidden if gradient else hidden.detach().clone())

    with hooked(model, [(place, noting(place)) for place in found]):
        yield found


@torch.no_grad()
def activations(
    model: Any, tokens: Mapping[str, Tensor], sites: Iterable[Place], at: str = "last", rows: int = 16
) -> dict[Site, Tensor]:
    """Site -> a state for each row, (rows, width) float32.

    tokens  input_ids (rows, T), left-padded, and attention_mask; what else the model takes for each row
    at      "last": the last token; "mean": of all that are not padding; "answer": the mean over tokens["answer"]
    rows    that are run at once

    Raises ValueError for another `at`, for right padding, and for a site that the model does not have.
    """
    weights = _weights(tokens, at)
    places = [resolved(model, place) for place in sites]
    parts: dict[Site, list[Tensor]] = {place: [] for place in places}
    for k in range(0, len(weights), rows):
        with recording(model, places) as found:
            run(model, _rows(tokens, k, k + rows))
        for place in places:
            states = found[place][-1].float()
            weight = weights[k : k + rows, :, None].to(states.device)
            # the states of padding may be NaN
            parts[place].append(torch.where(weight > 0, states * weight, 0).sum(1))
    return {place: torch.cat(part) for place, part in parts.items()}


@torch.no_grad()
def norms(model: Any, tokens: Mapping[str, Tensor], sites: Iterable[Place], rows: int = 16) -> dict[Site, float]:
    """Site -> median norm of the states of all tokens that are not padding."""
    real, places = tokens["attention_mask"].bool(), [resolved(model, place) for place in sites]
    sizes: dict[Site, list[Tensor]] = {place: [] for place in places}
    for k in range(0, len(real), rows):
        with recording(model, places) as found:
            run(model, _rows(tokens, k, k + rows))
        for place in places:
            states = found[place][-1]
            sizes[place].append(norm(states)[..., 0][real[k : k + rows].to(states.device)])
    return {place: float(torch.cat(part).median()) for place, part in sizes.items()}


def run(model: Any, tokens: Mapping[str, Tensor]) -> Any:
    """One pass without a cache; positions are counted from the first token of a row that is not padding."""
    takes = inspect.signature(model.forward).parameters
    extra: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in takes:
        extra["logits_to_keep"] = 1
    if "position_ids" in takes and set(tokens) <= {"input_ids", "attention_mask"}:  # a VLM counts its own
        extra["position_ids"] = (tokens["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return model(**{name: value.to(model.device) for name, value in tokens.items()}, **extra)


def _rows(tokens: Mapping[str, Tensor], first: int, last: int) -> dict[str, Tensor]:
    """Some rows of a batch; of pictures, whose patches some processors lay end to end, the share of these rows.

    Raises ValueError for pictures that the rows do not share evenly.
    """
    count = len(tokens["attention_mask"])
    given = {name: value for name, value in tokens.items() if name != "answer"}
    if first == 0 and last >= count:
        return given
    if uneven := [name for name, value in given.items() if len(value) % count]:
        raise ValueError(f"{uneven} cannot be cut into {count} rows: run all at once, with rows={count}.")
    share = {name: len(value) // count for name, value in given.items()}
    return {name: value[first * share[name] : last * share[name]] for name, value in given.items()}


def _weights(tokens: Mapping[str, Tensor], at: str) -> Tensor:
    """(rows, T) that sum to 1 over the tokens of a row that count."""
    real = tokens["attention_mask"].bool()
    if not real[:, -1].all():
        raise ValueError("rows that end in padding: expected padding on the left, tokenizer.padding_side = 'left'.")
    if at == "last":
        chosen = torch.zeros_like(real)
        chosen[:, -1] = True
    elif at in ("mean", "answer"):
        chosen = real if at == "mean" else tokens["answer"].bool()
    else:
        raise ValueError(f"at={at!r}: expected 'last', 'mean' or 'answer'.")
    return chosen.float() / chosen.sum(1, keepdim=True).clamp_min(1)
