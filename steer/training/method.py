"""A method of fine-tuning as a value: what is trained, by what loss, with which updates, in which phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from steer.training.handle import Handle, Weights, own
from steer.training.loop import Logged, Loss, Run, fit

Masks = Mapping[str, Tensor]
"""Of parameters by name: True where an entry is trained. What is not named is trained whole."""


class Task(Protocol):
    """What there is to learn: a model, and whatever a method's loss asks of it (prompts, rewards, examples)."""

    model: nn.Module


Parametrise = Callable[[Task], Handle]
Select = Callable[[Handle, Task], Masks]
Objective = Callable[[Handle, Task], Loss]
Optim = Callable[[Handle, Masks], torch.optim.Optimizer]
End = Literal["keep", "merge", "rewind"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    parametrise  task -> what is trained; None: what the phase before trained goes on
    objective    -> the loss
    optim        -> the optimiser, or a chain of updates that ends in one
    select       -> which entries are trained; None: all
    share        of the method's steps
    end          keep: as it is; merge: into the model's own weights; rewind: trained values back to the start, so that
                 the next phase trains them anew under what it selects
    """

    objective: Objective
    optim: Optim
    parametrise: Parametrise | None = None
    select: Select | None = None
    share: float = 1.0
    end: End = "keep"


@dataclass(frozen=True)
class Method:
    """A row of the table of methods.

    paper    arXiv number
    phases   one after the other
    dials    what a run may set: the arguments of whatever makes the method, with their defaults
    """

    paper: str
    phases: tuple[Phase, ...]
    dials: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not self.phases or self.phases[0].parametrise is None:
            raise ValueError("a method needs a first phase, and that must say what is trained.")


@dataclass(frozen=True)
class Tuned:
    """What came of it: the handle, still attached unless its phase merged it, and a row a step."""

    handle: Handle
    log: list[Logged]
    last: Weights = field(repr=False)
    """the trained values as they were at the end of the last phase"""


def tune(task: Task, method: Method, run: Run = Run(), folder: str | Path | None = None) -> Tuned:
    """Train a task's model by a method.

    folder  of checkpoints, one folder a phase: a run that was stopped goes on where it was

    Raises what `fit` raises, and ValueError for phases that share out another number of steps than there are.
    """
    steps = [round(run.steps * phase.share) for phase in method.phases]
    if sum(steps) != run.steps or min(steps) < 1:
        raise ValueError(f"{run.steps} steps over phases of {steps}: expected at least one each, and all of them.")
    handle, log, last = None, [], {}
    for k, (phase, count) in enumerate(zip(method.phases, steps)):
        handle = phase.parametrise(task) if phase.parametrise is not None else handle
        masks = {} if phase.select is None else phase.select(handle, task)
        where = None if folder is None else Path(folder) / f"phase-{k}"
        optimiser, loss = phase.optim(handle, masks), phase.objective(handle, task)
        log += fit(handle, loss, optimiser, replace(run, steps=count, seed=run.seed + k), where)
        last = handle.weights()
        if phase.end == "merge":
            handle = own(handle.merge(), lambda name, parameter: True)
        elif phase.end == "rewind":
            handle.load(handle.start)
    return Tuned(handle, log, last)
