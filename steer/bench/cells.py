"""One cell of a suite: a method with a budget on a model for a reward, run and measured."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from steer.bench.cell import Cell
from steer.bench.methods import BASELINE, METHODS
from steer.bench.spec import Method, method, specs
from steer.bench.worlds import World, branches, pictures, world_of
from steer.compare import score


def run(cell: Cell, device: str = "cpu") -> dict[str, Any]:
    """The result row of a cell; costs are for a picture. Raises ValueError for a cell that cannot be run."""
    world, found = world_of(cell.model, cell.dtype, device), method(cell.method)
    wide = branches(world, cell.guidance)
    reward, size = world.reward(cell.reward), found.size(cell.budget, cell.steps, wide)
    if size.n < 1:
        raise ValueError(
            f"a budget of {cell.budget} rows does not pay for one trajectory of {cell.method} in {cell.steps} steps at "
            f"guidance {cell.guidance}: expected at least {wide * found.rows(size._replace(n=1))}."
        )
    began, peak = time.perf_counter(), Peak(device)
    x, ledger = pictures(world, cell, size.n, lambda problem: found.solve(problem, reward, size))
    seconds, megabytes = time.perf_counter() - began, peak.megabytes()
    count = x.shape[0] * x.shape[1]
    cost = {name: value / count for name, value in asdict(ledger).items() if name != "seconds"}
    with torch.no_grad():
        target = score(reward, x, world.prompts(cell)).mean(1).tolist()
        judged = world.judged(x, cell)
    return {
        "cell": asdict(cell),
        "controllers": repr(found.controllers(reward, size)),
        "n": size.n,
        "target": target,
        **judged,
        **cost,
        "cost": cost["rows"] + 2 * cost["backward_rows"],
        "seconds": seconds / count,
        "peak_mb": megabytes,
        "device": device,
    }


def cells_of(
    models: Sequence[str],
    methods: Sequence[str] = (),
    rewards: Sequence[str] = (),
    budgets: Sequence[int] = (),
    guidance: Sequence[float] = (1.5, 3.0, 6.0),
    seeds: int = 3,
    **same: Any,
) -> tuple[list[Cell], list[str]]:
    """All cells of a suite, seed by seed, and what was left out and why. The baseline is always in it.

    methods   names, with all their settings, or specifications; default all of `METHODS`
    rewards   default those that a model has
    budgets   rows for a picture; default 1, 2, 4, 8 and 16 trajectories
    same      what all cells share, as `Cell` has it: steps, prompts, images, prompt_set, dtype

    Raises ValueError for unknown names, and for a budget that is smaller than one trajectory.
    """
    chosen = {spec: method(spec) for name in (BASELINE, *(methods or METHODS)) for spec in specs(name)}
    steps = same.get("steps", Cell.steps)
    found, left_out = [], {}
    for model in models:
        world = world_of(model, same.get("dtype", Cell.dtype), "cpu")
        for scale in guidance if world.guided else (1.0,):
            one = branches(world, scale) * steps
            for budget in budgets or [one * k for k in (1, 2, 4, 8, 16)]:
                if budget < one:
                    raise ValueError(
                        f"a budget of {budget} rows is smaller than one trajectory on {model}: {steps} steps at "
                        f"guidance {scale} are {one} rows."
                    )
                for name, spec in itertools.product(rewards or tuple(world.rewards), chosen):
                    cell = Cell(model, spec, name, budget, scale, **same)
                    if why := _unfit(cell, world, chosen[spec]):
                        left_out[why] = None
                    else:
                        found += [replace(cell, seed=seed) for seed in range(seeds)]
    return sorted(found, key=lambda cell: cell.seed), list(left_out)


def _unfit(cell: Cell, world: World, found: Method) -> str | None:
    """Why a cell cannot be run, if so."""
    reward, wide = world.reward(cell.reward), branches(world, cell.guidance)
    if found.entry.gradient and not reward.differentiable:
        return f"{cell.method} takes gradients, and {cell.reward} has none"
    if found.entry.guided and wide == 1:
        return f"{cell.method} saves on guidance, and {cell.model} has none at {cell.guidance}"
    if found.size(cell.budget, cell.steps, wide).n < 1:
        return f"{cell.budget} rows do not pay for one trajectory of {cell.method}"
    return None


class Peak:
    """The most memory in use from here on: of the device, or of this process, where Linux lets that be reset."""

    def __init__(self, device: str):
        self.device, self.known = device, True
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.known = False

    def megabytes(self) -> float | None:
        """None where nobody keeps count from here on."""
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        if not self.known:
            return None
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024 / 1e6
