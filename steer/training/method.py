"""A method of fine-tuning as a value: what is trained, by what loss, with which updates, in which phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
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


# of a task each asks what it needs, which is more than `Task` has
Parametrise = Callable[[Any], Handle]
Select = Callable[[Handle, Any], Masks]
Objective = Callable[[Handle, Any], Loss]
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
                 the next phase trains them anew under what it selects, which may look at `handle.reached`
    clip         False: the method clips gradients in its own way, and the run's clip is left out
    """

    objective: Objective
    optim: Optim
    parametrise: Parametrise | None = None
    select: Select | None = None
    share: float = 1.0
    end: End = "keep"
    clip: bool = True


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
    count: int
    """numbers that the last phase trained: of what it selected, if it did"""


def tune(task: Task, method: Method, run: Run = Run(), folder: str | Path | None = None) -> Tuned:
    """Train a task's model by a method.

    folder  of checkpoints, one folder a phase: a run that was stopped goes on where it was; one of other steps goes on
            from it if there is one phase, else it begins anew, as its phases end elsewhere

    Raises what `fit` raises, and ValueError for shares whose sum is not 1 and for a phase that is left without a step.
    """
    ends = [round(run.steps * share) for share in accumulate(phase.share for phase in method.phases)]
    steps = [end - begin for begin, end in pairwise([0, *ends])]
    if ends[-1] != run.steps or min(steps) < 1:
        raise ValueError(f"{run.steps} steps over phases of {steps}: expected at least one each, and all of them.")
    if folder is not None and len(steps) > 1:
        folder = Path(folder) / f"{run.steps}-steps"
    handle, log, last, trained = None, [], {}, 0
    for k, (phase, count) in enumerate(zip(method.phases, steps)):
        if phase.parametrise is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(run.seed + k)  # peft draws from it
                handle = phase.parametrise(task)
        masks = {} if phase.select is None else phase.select(handle, task)
        where = None if folder is None else Path(folder) / f"phase-{k}"
        optimiser, loss = phase.optim(handle, masks), phase.objective(handle, task)
        settings = replace(run, steps=count, seed=run.seed + k, clip=run.clip if phase.clip else None)
        log += fit(handle, loss, optimiser, settings, where)
        last = handle.weights()
        trained = sum(int(masks[name].sum()) if name in masks else last[name].numel() for name in last)
        if phase.end == "merge":
            handle = own(handle.merge(), lambda name, parameter: True)
        elif phase.end == "rewind":
            handle.rewind()
    return Tuned(handle, log, last, trained)
