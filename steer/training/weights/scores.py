"""Scores: how much each entry of each weight matters, by signs that cost one pass over data or none.

The zoo of SPEFT (arXiv 2412.13488): of a weight w, with g the mean gradient, E[g^2] over single examples, H g the
curvature along the gradient, and where training had moved w to. SPEFT finds |g| as good as any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from steer.training.handle import Handle, Weights
from steer.training.method import Masks, Select
from steer.training.weights.collect import Criterion, Statistics, batches, collect, flow
from steer.training.weights.select import Scope, select
from steer.training.weights.task import Learnable, asked, targeted


class Score(NamedTuple):
    """A rule of a weight and one statistic of it; the statistic's name, or "" for none."""

    of: str
    rule: Callable[..., Tensor]


SCORES = {
    "random": Score("draw", lambda w, draw: draw),
    "magnitude": Score("", lambda w: w.abs()),
    "gradient": Score("gradient", lambda w, g: g.abs()),
    "fisher": Score("square", lambda w, square: square),
    "snip": Score("gradient", lambda w, g: (w * g).abs()),
    "force": Score("gradient", lambda w, g: -w * g),
    "taylor": Score("gradient", lambda w, g: (w * g) ** 2),
    "grasp": Score("curvature", lambda w, hg: w * hg),
    "synflow": Score("flow", lambda w, along: (w * along).abs()),
    "movement": Score("reached", lambda w, reached: (reached - w).abs()),
}


def scores(kind: str, weights: Weights, statistics: Statistics) -> Weights:
    """The scores of weights by name, pure arithmetic. Raises ValueError for a kind that is none of `SCORES`."""
    if kind not in SCORES:
        raise ValueError(f"score {kind!r}: expected one of {sorted(SCORES)}.")
    of, rule = SCORES[kind]
    return {name: rule(w, *([statistics[of][name]] if of else [])) for name, w in weights.items()}


def salient(
    kind: str,
    amount: int | float,
    scope: Scope = "model",
    targets: Sequence[str] = (),
    keep: str = "largest",
    examples: int = 64,
    size: int = 1,
    seed: int = 0,
    loss: Callable[[Learnable], Criterion] = lambda task: task.loss,
) -> Select:
    """Masks of the target layers' weights by a score; what else the handle trains, it trains whole.

    examples  batches of `size` for the statistics; Fisher's squares are of single examples at size 1 only
    loss      what the gradients are of
    """

    def choose(handle: Handle, task: Learnable) -> Masks:
        layers = targeted(handle.model, targets)
        parameters = {n: p for n, p in handle.parameters.items() if any(p is layer.weight for layer in layers.values())}
        of = SCORES[kind].of if kind in SCORES else ""
        known: Statistics = {"reached": handle.reached}
        if of == "draw":
            generator = Generator().manual_seed(seed)
            known["draw"] = {name: torch.rand(p.shape, generator=generator).to(p) for name, p in parameters.items()}
        elif of == "reached" and not handle.reached:
            raise ValueError("movement is of a phase before that ended in a rewind, and there is none.")
        elif of == "flow":
            known["flow"] = flow(handle.model, asked(task, "ones"), parameters)
        elif of in ("gradient", "square", "curvature"):
            data = batches(task, examples, size, seed)
            known |= collect(handle.model, loss(task), data, parameters, [of])
        values = {name: parameter.detach() for name, parameter in parameters.items()}
        return select(scores(kind, values, known), amount, scope, keep)

    return choose


def below(handle: Handle, masks: Masks) -> Callable[[dict[str, nn.Parameter]], Masks]:
    """Masks of what is at most as large as the largest entry of these masks was, asked anew in each step."""
    limits = {name: handle.parameters[name].detach()[mask].abs().max() for name, mask in masks.items()}
    return lambda parameters: {name: parameters[name].abs() <= limit for name, limit in limits.items()}
