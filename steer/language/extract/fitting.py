"""From preference pairs to a vector: run them, read both states of each, extract, and write down how it was done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steer.language.data import Encoded, Pair, encoded
from steer.language.edits import norm
from steer.language.extract.directions import METHODS, Extractor
from steer.language.record import Place, activations, recording
from steer.language.scoring import matched, usable
from steer.language.tower import Site, resolved, tower
from steer.language.vectors import SteeringVector
from steer.rewards.border import unknown


def fit(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    method: str | Extractor = "mean",
    *,
    sites: Iterable[Place] | None = None,
    at: str = "last",
    rows: int = 16,
) -> SteeringVector:
    """A steering vector from pairs: at each site the direction between states with the positive and negative response.

    method  "mean" (CAA), "pca", "probe", or an extractor (positive (n, d), negative (n, d)) -> (d,), such as
            `partial(pca, centred=True)`
    sites   None: behind every block. States are read where steering adds, the last block's before the final norm
    at      "last": the last token of the response; "answer": the mean over its tokens; "mean": over prompt and response
    rows    that go through the model at once, those of like length together

    The vector carries the median norm of the states at each site, and as provenance the model with a hash of its
    configuration, the method, and a hash of the pairs. Raises ValueError for no pairs, some with and some without an
    image, a tokenizer of another model, rows longer than the context, an unknown method or `at`, and what the method
    raises.
    """
    if isinstance(method, str) and method not in METHODS:
        raise unknown("method", method, METHODS)
    extract = METHODS[method] if isinstance(method, str) else method
    places = range(len(tower(model).blocks)) if sites is None else sites
    states = recorded(model, tokenizer, pairs, places, at, rows)
    about = described(model, method if isinstance(method, str) else _named(method), pairs) | {"at": at}
    directions = {place: extract(found.positive, found.negative) for place, found in states.items()}
    return SteeringVector(directions, {place: found.norm for place, found in states.items()}, about)


class States(NamedTuple):
    """What pairs do at one site: states (n, width) float32 on the CPU, and the median norm of those of all tokens."""

    positive: Tensor
    negative: Tensor
    norm: float


def recorded(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], sites: Iterable[Place], at: str, rows: int = 16
) -> dict[Site, States]:
    """Run both responses of every pair behind its prompt, `rows` of like length at once, and read the states `at`."""
    every = _rows(model, tokenizer, pairs)
    places = [resolved(model, place) for place in sites]
    found: dict[Site, list[Tensor]] = {place: [] for place in places}
    sizes: dict[Site, list[Tensor]] = {place: [] for place in places}
    order = every.lengths.argsort(stable=True)
    for index in order.split(rows):
        part = every.take(index)
        with recording(model, places) as seen:
            states = _states(model, part, places, at)
        for place in places:
            found[place].append(states[place].cpu())
            sizes[place].append(norm(seen[place][-1].cpu())[..., 0][part.attention_mask.bool()])
    sides = {place: torch.cat(found[place])[order.argsort()].chunk(2) for place in places}
    return {
        place: States(positive, negative, float(torch.cat(sizes[place]).median()))
        for place, (positive, negative) in sides.items()
    }


def _rows(model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> Encoded:
    """The prompts with their positive responses, then with their negative ones."""
    matched(model, tokenizer)
    images = [pair.image for pair in pairs]
    if not images or len({image is None for image in images}) > 1:
        some = sum(image is not None for image in images)
        raise ValueError(f"{len(images)} pairs, {some} with an image: expected some pairs, all with an image or none.")
    responses = [pair.positive for pair in pairs] + [pair.negative for pair in pairs]
    every = encoded(
        tokenizer, [pair.prompt for pair in pairs] * 2, responses, None if images[0] is None else images * 2
    )
    usable(model, every)
    return every


def _states(model: Any, part: Encoded, places: Sequence[Site], at: str) -> dict[Site, Tensor]:
    """One pass: what a processor made of images is not counted in rows, and cannot be cut into them."""
    tokens = part.inputs() | {"answer": part.answer}
    return activations(model, tokens, places, at, rows=max(len(value) for value in tokens.values()))


INCIDENTAL = ("_name_or_path", "dtype", "transformers_version")
"""What a configuration says that is not of the model."""


def described(model: Any, method: str, data: Sequence[Any]) -> dict[str, str]:
    """Provenance: what a vector was made of, by what, as text."""
    from steer import __version__

    config, (_, blocks, width) = model.config, tower(model)
    settings = {name: value for name, value in config.to_dict().items() if name not in INCIDENTAL}
    about = {
        "model": _name(config.name_or_path) or type(model).__name__,
        "revision": getattr(config, "_commit_hash", None) or "",
        "config": _hash(json.dumps(settings, sort_keys=True, default=str)),
        "architecture": config.model_type,
        "blocks": str(len(blocks)),
        "width": str(width),
        "method": method,
        "data": _hash(*(part for item in data for part in _content(item))),
        "examples": str(len(data)),
        "steer": __version__,
    }
    return {name: value for name, value in about.items() if value}


def _name(model: str) -> str:
    """A hub id, or a folder's own name: where it lies is no one's business."""
    return Path(model).name if Path(model).is_dir() else model


def _content(item: Any) -> list[bytes]:
    """A text, or a pair with its image, for a hash: each part ends in a byte that no text has."""
    if isinstance(item, str):
        return [item.encode() + b"\xff"]
    texts = [text.encode() + b"\xff" for text in (item.prompt, item.positive, item.negative)]
    if item.image is None:
        return texts
    import numpy as np

    image = item.image
    return [*texts, str(image).encode() if isinstance(image, str | Path) else np.asarray(image).tobytes()]


def _hash(*parts: str | bytes) -> str:
    digest = sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def _named(method: Any) -> str:
    """A function's name, with the settings of a partial."""
    if isinstance(method, partial):
        settings = ", ".join([*map(repr, method.args), *(f"{k}={v!r}" for k, v in sorted(method.keywords.items()))])
        return f"{_named(method.func)}({settings})"
    return getattr(method, "__name__", repr(method))
