"""How a score becomes a log-weight: functions (scores (P, n), state) -> (log G (P, n), what to remember)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.diffusion.state import State
from steer.pick import ess

Potential = Callable[[Tensor, State], tuple[Tensor, dict[str, Tensor]]]

HALVINGS = 24  # of an interval in [0, 1]: to float32 rounding


@dataclass(frozen=True)
class Value:
    """log G = beta r(x0): each look is judged by itself (CoDe, SVDD)."""

    beta: float = 1.0

    def __call__(self, scores: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        return _times(self.beta, scores), {}


@dataclass(frozen=True)
class FeynmanKac:
    """Potentials of Feynman-Kac steering (arXiv 2501.06848, section 3): what a particle's path has scored so far.

    diff  log G = beta (r_now - r_before)      max  log G = beta max of all r so far      sum  log G = beta sum of all r
    At the end log G = beta r - (sum of all earlier log G), so that the product over the path is exp(beta r(x)) for
    every kind: the target is the exactly tilted posterior p(x) exp(beta r(x)), and the kinds differ only in variance
    (that of `sum` may be infinite beyond a few looks). A look that failed weighs -inf but leaves no mark on the path,
    should the particle be kept because all have failed.

    Remembers log Z, the estimate of log E_p[exp(beta r)], see `Search.log_z`: the sum over looks of
    log sum_k W_k G_k, with W the normalised weights before the look.
    """

    kind: str
    beta: float

    def __post_init__(self):
        if self.kind not in ("diff", "max", "sum"):
            raise ValueError(f"potential {self.kind!r}: expected 'diff', 'max' or 'sum'.")

    def __call__(self, scores: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        spent = _recalled(state, "spent")
        running = _recalled(state, "running", -torch.inf)
        if self.kind == "max":
            now = torch.maximum(running, scores)
        elif self.kind == "sum":
            now = torch.where(torch.isneginf(running), scores, running + scores)
        else:
            now = scores
        failed = torch.isneginf(scores)
        owed = scores if state.finished else torch.where(failed, scores, now)
        log_g = _times(self.beta, owed) - (spent if self.kind == "diff" or state.finished else 0)
        spent = torch.where(failed, spent, spent + log_g)
        before = torch.log_softmax(state.grouped(state.logw), -1)
        log_z = _recalled(state, "log_z") + torch.logsumexp(before + log_g, -1, keepdim=True)
        kept = {"spent": spent, "running": torch.where(failed, running, now), "log_z": log_z}
        return log_g, {name: values.flatten() for name, values in kept.items()}


@dataclass(frozen=True)
class Tempered:
    """Tempering of DAS (arXiv 2501.05803): the reward is let in little by little, as fast as the particles can follow.

    log G = beta (lambda r_now - lambda_before r_before), with lambda the largest value in [lambda_before, 1] that
    leaves an effective sample size of `ess` of the live particles, for each prompt; where already lambda_before leaves
    less, it stays. At the end lambda = 1, so the product over the path is exp(beta r(x)): the target is the tilted
    posterior p(x) exp(beta r(x)), whatever the intermediate lambda were, and the estimate of Z (`Search.log_z`) is
    unbiased for every n. Without the gradient in DAS's proposal. Raises ValueError unless 0 < ess <= 1.
    """

    beta: float
    ess: float = 0.8

    def __post_init__(self):
        if not 0 < self.ess <= 1:
            raise ValueError(f"ess = {self.ess}: expected a fraction of the particles in (0, 1].")

    def __call__(self, scores: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        before = _recalled(state, "lambda")[:, :1]
        now = torch.ones_like(before) if state.finished else self._lambda(scores, state, before)
        log_g, memory = FeynmanKac("diff", 1.0)(_times(self.beta * now, scores), state)
        return log_g, {**memory, "lambda": now.expand_as(scores).flatten()}

    def _lambda(self, scores: Tensor, state: State, before: Tensor) -> Tensor:
        """(P, 1) by bisection; `low` always leaves enough particles, unless `before` leaves too few."""
        logw = state.grouped(state.logw) - _recalled(state, "spent")
        enough = self.ess * (~torch.isneginf(scores)).sum(-1, keepdim=True)

        def leaves_enough(value: Tensor) -> Tensor:
            return ess(logw + _times(self.beta * value, scores))[:, None] >= enough

        all_of_it = leaves_enough(torch.ones_like(before))
        low = torch.where(all_of_it, 1.0, before)
        high = torch.where(all_of_it | leaves_enough(before), 1.0, before)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            good = leaves_enough(middle)
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        return low


def _recalled(state: State, name: str, default: float = 0.0) -> Tensor:
    """(P, n) what a potential has kept, or the default at its first look."""
    return state.grouped(state.memory.get(name, torch.full(state.logw.shape, default)))


def _times(beta: float | Tensor, scores: Tensor) -> Tensor:
    """beta r, at any beta; a score that failed stays -inf."""
    return torch.where(torch.isneginf(scores), scores, beta * scores)
