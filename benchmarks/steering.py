"""What steering adds to a decoding step of SmolLM2 at batch 1: ratios of alternating runs in one process.

    python -m benchmarks.steering
    python -m benchmarks.steering --peers repeng steering_vectors     with those that this environment can import

Every layer is steered, with the same unit vectors and small strengths; the floor is an empty hook on every layer. Peers
add the same directions with their own hooks, and the states that they make are compared with ours. Writes
benchmarks/results/steering.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

import steer
from benchmarks.output import part_of, tabulate, write
from benchmarks.timing import alternating, ratio
from steer.cli import record
from steer.language import Site, SteeringVector, folded, norms, recording, steering
from steer.language.tower import tower

SIZE = 0.05
"""Strength of everything: far from what changes the text, as time is what is asked for."""


@dataclass(frozen=True)
class Steering:
    """Greedy decoding with a cache."""

    tokens: int = 16
    """decoded in each run"""
    rounds: int = 31
    peers: tuple[str, ...] = ()
    """repeng, steering_vectors"""
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table goes between its `<!-- python -m benchmarks.steering -->` and the end of that"""


def main(bench: Steering) -> None:
    """Measure, print and write."""
    if unknown := set(bench.peers) - set(PEERS):
        raise ValueError(f"peers {sorted(unknown)}: expected some of {tuple(PEERS)}.")
    record.folder(bench.results)
    part = part_of(bench)
    model, tokenizer = steer.load("smollm2")
    prompt = tokenizer("The history of the bicycle begins with", return_tensors="pt")
    vector = directions(model, prompt)
    variants = {
        "plain": nullcontext,
        "empty hook": partial(empty, model),
        "add": partial(steering, model, vector, SIZE, relative=False, keep_norm=False),
        "norm-preserving": partial(steering, model, vector, SIZE),
        "folded": partial(folded, model, vector, SIZE),
        **{name: partial(PEERS[name], model, vector) for name in bench.peers},
    }
    times = alternating(dict.fromkeys(variants, decoding(bench, model, prompt)), bench.rounds, variants)
    agree = agreement(model, prompt, variants)
    lines = []
    for name, seconds in times.items():
        found = ratio(seconds, times["empty hook"])
        step = 1000 * sorted(seconds)[len(seconds) // 2] / bench.tokens
        lines.append({"steering": name, "ms a step": step, "/ empty hook": found["ratio"], **found, **agree[name]})
        del lines[-1]["ratio"]
    tabulate(lines, f"SmolLM2, batch 1, {torch.get_num_threads()} threads, every layer steered", part)
    write(bench, {"threads": torch.get_num_threads(), "table": lines})


def directions(model: Any, prompt: Any) -> SteeringVector:
    """A random unit vector behind every block."""
    _, blocks, width = tower(model)
    g = torch.Generator().manual_seed(0)
    drawn = {Site(k): torch.nn.functional.normalize(torch.randn(width, generator=g), dim=0) for k in range(len(blocks))}
    return SteeringVector(drawn, norms(model, dict(prompt), drawn))


def decoding(bench: Steering, model: Any, prompt: Any) -> Callable[[], Tensor]:
    """Decode; the end of text is disabled, so that all runs are equally long."""
    length = {"max_new_tokens": bench.tokens, "min_new_tokens": bench.tokens, "do_sample": False}

    return torch.no_grad()(lambda: model.generate(**prompt, **length))


@contextmanager
def empty(model: Any) -> Iterator[None]:
    """A hook on every block that does nothing."""
    with ExitStack() as undo:
        for block in tower(model).blocks:
            undo.callback(block.register_forward_hook(lambda *args: None).remove)
        yield


@contextmanager
def repeng(model: Any, vector: SteeringVector) -> Iterator[None]:
    """vgel/repeng: wraps blocks for good, so its modules are put back here."""
    import numpy

    numpy.float_ = numpy.float64  # noqa: NPY201 - repeng 0.4.0 names a type that NumPy 2 has dropped
    from repeng import ControlModel, ControlVector  # pyright: ignore[reportMissingImports]

    blocks = tower(model).blocks
    before = list(blocks)
    added = {place.layer: v.numpy() for place, v in vector.directions.items()}
    control = ControlModel(model, list(added))
    try:
        control.set_control(ControlVector(model_type="llama", directions=added), SIZE)
        yield
    finally:
        for k, block in enumerate(before):
            blocks[k] = block


@contextmanager
def steering_vectors(model: Any, vector: SteeringVector) -> Iterator[None]:
    """steering-vectors/steering-vectors."""
    from steering_vectors import SteeringVector as Theirs  # pyright: ignore[reportMissingImports]

    added = {place.layer: v for place, v in vector.directions.items()}
    with Theirs(added, "decoder_block").apply(model, multiplier=SIZE):
        yield


PEERS = {"repeng": repeng, "steering_vectors": steering_vectors}


def agreement(model: Any, prompt: Any, variants: dict[str, Callable[[], AbstractContextManager]]) -> dict[str, Any]:
    """How far the states behind the last block are from those of "add", relative to them: 0 for the same sum."""
    states = {}
    for name, opened in variants.items():
        # opened last, so that it sees what every hook before it has made
        with opened(), recording(model, [-1]) as found, torch.no_grad():
            model(**prompt)
        states[name] = next(iter(found.values()))[0]
    size = states["add"].norm()
    return {name: {"from add": float((s - states["add"]).norm() / size)} for name, s in states.items()}


if __name__ == "__main__":
    main(tyro.cli(Steering, description=__doc__))
