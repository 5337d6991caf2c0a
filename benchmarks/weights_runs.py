"""A run of `benchmarks.weights`: as many steps of a method as cost the budget, all it does before them included."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.weights_measures import MEASURES, at_start, measured
from benchmarks.weights_methods import BATCH, ENTRIES, TARGETS, Entry
from benchmarks.weights_world import Size, World, world_of
from steer.diffusion.ledger import Ledger
from steer.training import Method, Run, tune
from steer.training.diffusion import Pairs
from steer.training.weights.difference import Difference


def cost(ledger: Ledger) -> int:
    """Network rows; one that carries a gradient counts for three."""
    return ledger.rows + 2 * ledger.backward_rows


def steps_for(world: World, method: Method, budget: float) -> int:
    """Steps that the budget pays for beside the preparation, by what short runs cost: these are not counted."""
    task, spent, least = world.task, [], len(method.phases)
    ledger = task.ledger
    for steps in (least, 4 * least):
        task.ledger = Ledger()
        tune(task, method, Run(steps)).handle.detach()
        world.restore()
        spent.append(cost(task.ledger))
    task.ledger = ledger
    each = (spent[1] - spent[0]) / (3 * least)
    return max(least, int((budget - spent[0]) / each) + least)


def method_of(entry: Entry, lr: float, world: World, size: Size, folder: Path) -> Method:
    """The method, with models to merge tuned on the way."""
    files = {"files": tuned_parts(entry.models, world, size.budget / 2, folder)} if entry.models else {}
    method = entry.row(lr=lr, **entry.dials, **files)
    if not entry.content:
        return method
    first, *others = method.phases
    start, known = first.parametrise, world.task.pairs("content")
    return replace(method, phases=(replace(first, parametrise=lambda task: start(task.on(known))), *others))


def tuned_parts(count: int, world: World, budget: float, folder: Path) -> list[str]:
    """Difference files of models tuned in full, each on its part of the pictures, that share a budget."""
    files, whole, full = [], world.task.pairs(), ENTRIES["full"]
    for k in range(count):
        task = world.task.on(Pairs(whole.latents[k::count], whole.captions[k::count]))
        method = full.row(lr=full.lr, **full.dials)
        trained = tune(task, method, Run(max(1, int(budget / count / (3 * BATCH))))).handle.weights()
        difference = Difference.between({name: world.base[name] for name in trained}, trained)
        files.append(str(difference.save(folder / f"{k}.safetensors")))
        world.restore()
    return files


def run(name: str, lr: float, seed: int, size: Size, steps: int | None = None) -> dict[str, Any]:
    """Train by a method and measure what came of it; the world is as it was, also after an error.

    steps  as another run of the method has found them

    Raises ValueError where the method cannot run here, and where its loss is not finite.
    """
    world, entry, clock = world_of(size), ENTRIES[name], time.process_time
    world.task.ledger, began = Ledger(), clock()
    try:
        with TemporaryDirectory() as folder:
            method = method_of(entry, lr, world, size, Path(folder))
            prepared = clock() - began
            steps = steps or steps_for(world, method, size.budget - cost(world.task.ledger))
            began = clock()
            tuned = tune(world.task, method, Run(steps, seed=seed))
        spent = {"cost": cost(world.task.ledger), "seconds": prepared + clock() - began}
        found = {"steps": steps, "trained": tuned.count, **spent}
        if "start" in entry.measures:
            found["start"] = at_start(world, tuned.handle)
        if entry.merges:
            tuned.handle.merge()
        found |= measured(world, [each for each in entry.measures if each != "start"], TARGETS)
        if not entry.merges:
            tuned.handle.detach()
    except Exception:
        world_of.cache_clear()
        raise
    world.restore()
    return found


def before(size: Size) -> dict[str, Any]:
    """All measures of the model before training, and how many numbers it has."""
    found = measured(world_of(size), tuple(MEASURES), TARGETS)
    return {**found, "size": sum(weight.numel() for weight in world_of(size).base.values())}
