"""Fine-tuned models in the suite: trained on a cell's pipeline, and measured by cells as the untrained one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steer.bench.cell import Cell
from steer.bench.cells import run
from steer.bench.prompts import SETS
from steer.bench.spec import parts
from steer.bench.toys import TOYS
from steer.bench.worlds import Pipeline, world_of
from steer.training import Method, Run, tune
from steer.training.diffusion import DiffusionTask
from steer.training.methods import METHODS, followed, method
from steer.zoo.data import seen

REAL = 128  # pictures for methods that learn from some


def training_method(spec: str) -> Method:
    """Read "name" or "name:dial=value,dial=value". Raises ValueError for what is no method of diffusion models."""
    name, dials = parts(spec)
    made = method(name, **dials)
    if METHODS[name].kind != "diffusion":
        raise ValueError(f"{name} is no method for diffusion models: see steer train --list.")
    return made


def tuned_rows(
    spec: str, cells: Sequence[Cell], training: Run, folder: str | Path | None = None, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Rows of `steer.bench.run`, of a model that was trained for the cells' reward, each with what training cost.

    spec      as for `training_method`
    cells     that differ in method and budget alone
    training  how long; its seed is that of the cells
    folder    of checkpoints

    It is trained on the prompts of the cells' set that they do not use, with their steps and guidance. Drift is the
    divergence from pictures of the untrained model; the pipeline comes back as it was. Raises ValueError for cells that
    differ in more, and for toys.
    """
    first, made = cells[0], training_method(spec)
    same = [{**asdict(cell), "method": "", "budget": 0} for cell in cells]
    if first.model in TOYS or any(one != same[0] for one in same):
        raise ValueError(f"cells {cells}: expected those of one pipeline that differ in method and budget alone.")
    world = world_of(first.model, first.dtype, device)
    world.plain(first)
    task = _task(world, first, made)
    tuned = tune(task, made, training, folder)
    spent = {name: sum(row.get(name, 0) for row in tuned.log) for name in ("rows", "backward_rows", "reward_calls")}
    about = {"method": spec, "dials": dict(made.dials), "run": asdict(training), **spent, "trained": tuned.count}
    about |= {"cost": spent["rows"] + 2 * spent["backward_rows"], "seconds": sum(row["seconds"] for row in tuned.log)}
    try:
        return [{**run(cell, device), "training": about} for cell in cells]
    finally:
        tuned.handle.detach()


def _task(world: Pipeline, cell: Cell, made: Method) -> DiffusionTask:
    asked = {*world.prompts(cell)}
    prompts = [prompt for prompt in SETS[cell.prompt_set]() if prompt not in asked]
    options = {"num_inference_steps": cell.steps, "guidance_scale": cell.guidance, **world.options}
    return DiffusionTask.of(world.pipe, prompts, followed(made, world.reward(cell.reward)), seen(REAL), **options)
