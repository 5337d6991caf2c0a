"""One row for every method: what was learnt, what was forgotten, at what size. LoRA learns less, arXiv 2405.09673."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steer.training.handle import Weights
from steer.training.method import Tuned
from steer.training.weights.collect import batches, evaluating
from steer.training.weights.difference import Difference
from steer.training.weights.task import Learnable


@dataclass(frozen=True)
class Report:
    """learnt     loss on the target task, base less tuned: higher is more
    forgotten  of each source task: loss of the tuned less the base
    ranks      of each changed matrix by name: how many directions hold 90 % of its change
    trained    numbers that were trained
    changed    numbers that are another than in the base
    seconds    of training
    """

    learnt: float
    forgotten: dict[str, float]
    ranks: dict[str, int]
    trained: int
    changed: int
    seconds: float


def update_rank(change: Tensor, share: float = 0.9) -> int:
    """How many singular values hold `share` of sum s^2 of a matrix (out, ...), seen as (out, rest); 0 for none."""
    energy = torch.linalg.svdvals(change.reshape(len(change), -1).double()).square().cumsum(0)
    if not energy[-1] > 0:
        return 0
    return 1 + int((energy < share * energy[-1] * (1 - 1e-12)).sum())


def snapshot(model: nn.Module) -> Weights:
    """A copy of all parameters of a model, to be taken before a method attaches anything."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def report(
    tuned: Tuned,
    base: Weights,
    target: Learnable,
    sources: Mapping[str, Learnable],
    examples: int = 64,
    size: int = 8,
    seed: int = 1,
) -> Report:
    """Compare a tuned model, which is merged by this, with its base; `base` is its snapshot.

    target, sources  tasks of held-out examples: `examples` batches of `size` of each are drawn, the same for both
    """
    model = tuned.handle.merge()
    after = snapshot(model)
    tasks = {"": target, **sources}
    losses = {name: mean_loss(model, task, examples, size, seed) for name, task in tasks.items()}
    parameters = dict(model.named_parameters())
    _write(parameters, base)
    before = {name: mean_loss(model, task, examples, size, seed) for name, task in tasks.items()}
    _write(parameters, after)
    change = Difference.between(base, after)
    return Report(
        learnt=before[""] - losses[""],
        forgotten={name: losses[name] - before[name] for name in sources},
        ranks={n: update_rank(after[n] - w) for n, w in base.items() if w.ndim > 1 and len(change.values[n])},
        trained=tuned.count,
        changed=change.count,
        seconds=sum(row["seconds"] for row in tuned.log),
    )


@torch.no_grad()
def mean_loss(model: nn.Module, task: Learnable, examples: int, size: int, seed: int) -> float:
    """Of a task's own loss, over batches that are the same for every model, in eval mode."""
    with evaluating(model, {}):
        return sum(float(task.loss(model, batch)) for batch in batches(task, examples, size, seed)) / examples


@torch.no_grad()
def _write(parameters: Mapping[str, nn.Parameter], values: Weights) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
