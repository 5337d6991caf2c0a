"""Data diets: does EL2N find wrong labels, and do half of the examples, chosen anew every few epochs, do for all?

A linear head is trained on SmolLM2's last-token final states of persona statements, whether they match the persona.
An example's only token is its place among the states, so that the project's own methods train it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from benchmarks.texts_features import Labelled, Table, flipped, states
from benchmarks.texts_parts import Check, Part, Row, World, of, some
from steer.training import Method, Run, tune
from steer.training.text import hardest, scored
from steer.training.text.likelihood import Likelihood
from steer.training.text.methods import data_diet, dynamic_subset
from steer.training.text.subset import DynamicSubset


@dataclass(frozen=True)
class Size:
    file: str = "interest-in-art"
    train: int = 200
    test: int = 800
    epochs: int = 12
    batch: int = 16
    rank: int = 32
    lr: float = 3e-3
    flipped: float = 0.1
    """the share of labels that are wrong, and of examples that are left out"""
    keep: float = 0.5
    """the share of examples in a cycle"""
    warm: int = 2
    """epochs before the first cycle"""


def diet(size: Size, generator: Generator | None = None) -> tuple[Method, int]:
    """All examples but the hardest by one epoch, and steps; with a generator but as many drawn ones."""
    method = data_diet("el2n", 1 - size.flipped, size.flipped, 1 / (1 + size.epochs), **_dials(size))
    steps = (1 + size.epochs) * math.ceil(size.train / size.batch)
    if generator is None:
        return method, steps
    first, second = method.phases
    drawn = lambda handle, task: hardest(torch.rand(len(task.rows), generator=generator), 1 - size.flipped)  # noqa: E731
    other = replace(second, objective=partial(Likelihood, batch=size.batch, pool=drawn))
    return replace(method, phases=(first, other)), steps


def subset(size: Size, keep: float, generator: Generator | None = None) -> tuple[Method, int]:
    """Epochs over the hardest share in each cycle, and steps; with a generator over a share drawn for each cycle."""
    method = dynamic_subset(keep, warm=size.warm, **_dials(size))
    steps = size.warm * math.ceil(size.train / size.batch)
    steps += (size.epochs - size.warm) * math.ceil(math.ceil(keep * size.train) / size.batch)
    if generator is None:
        return method, steps
    chance = lambda logits, ids: torch.rand(len(ids), generator=generator)  # noqa: E731
    dials = {"batch": size.batch, "keep": keep, "warm": size.warm, "smooth": 1.0, "score": chance}
    (phase,) = method.phases
    return replace(method, phases=(replace(phase, objective=partial(DynamicSubset, **dials)),)), steps


def _dials(size: Size) -> Row:
    return {"batch": size.batch, "rank": size.rank, "lr": size.lr, "targets": ("head",)}


METHODS: dict[str, Callable[[Size, Generator], tuple[Method, int]]] = {
    "wrong labels, less the hardest": lambda size, generator: diet(size),
    "wrong labels, less drawn ones": diet,
    "all": lambda size, generator: subset(size, 1.0),
    "hard halves": lambda size, generator: subset(size, size.keep),
    "drawn halves": lambda size, generator: subset(size, size.keep, generator),
}
HARD, DRAWN, ALL, HALVES, CHANCE = METHODS


def run(world: World, size: Size, method: str, seed: int) -> Row:
    """Train by a method; `accuracy` is that on clean test labels, `found` how many times the share of all labels is
    wrong in the hardest part after one epoch."""
    features, labels = states(world, size.file, size.train + size.test)
    generator = Generator().manual_seed(seed)
    train, test = torch.randperm(len(labels), generator=generator).split([size.train, size.test])
    given = flipped(labels, train, size.flipped if method in (HARD, DRAWN) else 0.0, generator)
    task = Labelled(Table(features), train, given)
    how, steps = METHODS[method](size, generator)
    tuned = tune(task, how, Run(steps, seed=seed))
    row = {"gradients": task.ledger.backward_tokens, "loss": tuned.log[-1]["loss"]}
    with torch.no_grad():
        row["accuracy"] = float((task.model(test).argmax(-1) == labels[test]).double().mean())
    if method == HARD:
        with tuned.handle.using(tuned.handle.reached):
            top = train[hardest(scored(task), size.flipped)]
        wrong = (given != labels).double()
        row["found"] = float(wrong[top].mean() / wrong[train].mean())
    return row


def lines(rows: list[Row]) -> list[Row]:
    """A method a line, means over seeds."""
    found = []
    for method in METHODS:
        own = some(rows, method=method)
        accuracy = of(own, "accuracy")
        line = {"method": method, "seeds": len(own), "accuracy": float(accuracy.mean())}
        found.append({**line, "std": float(accuracy.std()), "gradients": float(of(own, "gradients").mean())})
    return found


def gain(rows: list[Row], method: str, other: str) -> Tensor:
    """Test accuracy in points, seed by seed."""
    return 100 * (of(rows, "accuracy", method=method) - of(rows, "accuracy", method=other))


CHECKS = (
    Check("wrong labels among the hardest 10 %, times their share", lambda r: of(r, "found", method=HARD), 3.0),
    Check("without the hardest 10 %, beside without 10 % drawn, points", lambda r: gain(r, HARD, DRAWN)),
    Check("hard halves beside all, points", lambda r: gain(r, HALVES, ALL), -1.0),
    Check(
        "share of example gradients that hard halves save",
        lambda r: 1 - of(r, "gradients", method=HALVES) / of(r, "gradients", method=ALL),
        0.3,
        False,
    ),
    Check("hard halves beside drawn halves, points", lambda r: gain(r, HALVES, CHANCE)),
)
PART = Part(
    Size(),
    Size(train=40, test=40, epochs=4),
    lambda size, seeds: [{"method": method, "seed": seed} for seed in range(seeds) for method in METHODS],
    run,
    CHECKS,
    lines,
)
