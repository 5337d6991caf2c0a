"""SUPERMERGE, arXiv 2412.10416: models tuned from one base are merged with weights that are learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from steer.training.handle import Handle, Weights
from steer.training.loop import Logged, Run
from steer.training.method import Method, Objective, Parametrise, tune
from steer.training.weights.difference import Difference
from steer.training.weights.task import Learnable

SWEEP = tuple(k / 10 for k in range(1, 10))


@dataclass(eq=False)
class Merging(Handle):
    """base + sum_i tanh(w_ij) tau_i of each parameter j: w (models, parameters) is what is trained.

    The base stays as it is; `merge` writes the best w that was seen.
    """

    vectors: dict[str, Tensor] = field(kw_only=True, repr=False)
    """of each parameter by name, the changes of all models (models, *shape)"""
    best: Weights = field(init=False, repr=False, default_factory=dict)

    def tensors(self, w: Tensor) -> Weights:
        """The merged parameters, with a graph to w."""
        base = dict(self.model.named_parameters())
        scales = w.tanh().unbind(1)
        return {
            name: base[name] + torch.tensordot(scale.to(changes), changes, 1)
            for scale, (name, changes) in zip(scales, self.vectors.items())
        }

    def run(self, w: Tensor) -> Callable[..., Any]:
        """The merged model, to be called."""
        tensors = self.tensors(w)
        return lambda *args, **settings: functional_call(self.model, tensors, args, settings)


def merging(files: Sequence[str | Path], examples: int, seed: int, sweep: bool) -> Parametrise:
    """Difference files to be merged, from their mean; with a sweep from the best of that and task arithmetic's sums,
    0.1 .. 0.9 times each, by the loss on the examples. Raises ValueError for no files."""

    def parametrise(task: Learnable) -> Handle:
        if not files:
            raise ValueError("no difference files to merge: expected at least one, see `Difference.save`.")
        parts = [Difference.load(file) for file in files]
        names = dict.fromkeys(name for part in parts for name in part.values)
        base = dict(task.model.named_parameters())
        if missing := [name for name in names if name not in base]:
            raise ValueError(f"the model has no parameters {missing[:4]}: merge differences of one base.")
        vectors = {name: torch.stack([part.tensor(name, base[name].detach()) for part in parts]) for name in names}
        w = nn.Parameter(torch.zeros(len(files), len(names)))
        handle = Merging(task.model, {"w": w}, lambda: write(handle), lambda: None, vectors=vectors)
        mean = 1 / len(files) if len(files) > 1 else 0.5  # tanh does not reach 1
        constants = [torch.full_like(w, math.atanh(scale)) for scale in (mean, *(SWEEP if sweep else ()))]
        batch = validation(task, examples, seed)
        with torch.no_grad():
            w.copy_(min(constants, key=lambda each: float(task.loss(handle.run(each), batch))))
        handle.start = handle.weights()
        return handle

    return parametrise


def validation(task: Learnable, examples: int, seed: int) -> Any:
    """The examples that the weights are learnt from: one batch, always the same."""
    return task.batch(Generator().manual_seed(seed), examples)


@torch.no_grad()
def write(handle: Merging) -> None:
    """The merged parameters into the model's own."""
    parameters = dict(handle.model.named_parameters())
    for name, value in handle.tensors((handle.best or handle.weights())["w"]).items():
        parameters[name].copy_(value)


class Validation:
    """The task's loss of the merged model on the validation examples; remembers the best w."""

    def __init__(self, handle: Merging, task: Learnable, examples: int, seed: int):
        self.handle, self.task, self.batch = handle, task, validation(task, examples, seed)
        self.lowest = math.inf

    def __call__(self, generator: Generator, step: int) -> tuple[Tensor, Logged]:
        value = self.task.loss(self.handle.run(self.handle.parameters["w"]), self.batch)
        if value.item() < self.lowest:
            self.lowest, self.handle.best = value.item(), self.handle.weights()
        return value, {"lowest": self.lowest}

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest, "best": self.handle.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lowest, self.handle.best = state["lowest"], state["best"]


def validated(examples: int, seed: int) -> Objective:
    return lambda handle, task: Validation(handle, task, examples, seed)


def tree(
    task: Learnable,
    files: Sequence[str | Path],
    method: Callable[[Sequence[str | Path]], Method],
    folder: str | Path,
    group: int = 2,
    run: Run = Run(),
) -> Path:
    """Merge in groups, then what they gave, until one difference file is left, in `folder`: never more than `group`
    models in memory. Raises ValueError unless group >= 2, and for no files."""
    if group < 2 or not files:
        raise ValueError(f"groups of {group} of {len(files)} files: expected groups of at least 2, and a file.")
    level, made = [Path(file) for file in files], 0
    while len(level) > 1:
        above = []
        for k in range(0, len(level), group):
            if len(together := level[k : k + group]) > 1:
                merged = tune(task, method(together), run).handle
                base = {name: p.detach() for name, p in merged.model.named_parameters() if name in merged.vectors}
                with torch.no_grad():
                    tensors = merged.tensors(merged.best["w"])
                made += 1
                above.append(Difference.between(base, tensors).save(Path(folder, f"merged-{made}.safetensors")))
            else:
                above += together
        level = above
    return level[0]
