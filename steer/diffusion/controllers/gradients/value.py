"""What a gradient method climbs, log f(x0) = beta r(x0), and its gradients: through the network, or at x0 alone.

A particle whose score or gradient is not finite gets the gradient zero, with a warning: it moves on unguided.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steer.diffusion.controllers.when import live
from steer.diffusion.state import Level, State

Reward = Callable[[Any, list[str]], Tensor]


class OwnNoise:
    """Noise for a controller's own use at one look: a stream for each particle, apart from that of its transitions."""

    def __init__(self, state: State):
        self.alias = state.alias
        seeds = [(seed // 2 + (state.i + 1) * 0x9E3779B97F4A7C15) % 2**63 for seed in state.run.noise.seeds]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def like(self, x: Tensor) -> Tensor:
        """(P n, ...) standard normal; a pruned slot shares its speaker's."""
        shape = (len(x) // len(self.generators), *x.shape[1:])
        blocks = [torch.randn(shape, generator=g, dtype=x.dtype) for g in self.generators]
        return torch.stack(blocks, dim=1).flatten(0, 1)[self.alias].to(x.device)


@dataclass(frozen=True)
class Smoothing:
    """log f(x0) becomes log mean_i f(x0 + s delta_i) over `samples` draws, s = gamma sigma / sqrt(alpha^2 + sigma^2).

    gamma = 1 is the deviation of LGD, that of x0 given x for a prior N(0, 1); gamma = 0 is no smoothing.
    """

    samples: int = 1
    gamma: float = 0.0

    def __post_init__(self):
        if self.samples < 1 or self.gamma < 0 or (self.gamma == 0 and self.samples > 1):
            raise ValueError(f"{self}: expected samples >= 1 and gamma >= 0, one sample where gamma = 0.")

    def offsets(self, level: Level, own: OwnNoise, like: Tensor) -> Tensor | None:
        """(samples, P n, ...), or None without smoothing."""
        if self.gamma == 0:
            return None
        deviation = self.gamma * level.sigma / math.hypot(level.alpha, level.sigma)
        return deviation * torch.stack([own.like(like) for _ in range(self.samples)])


class Slope(NamedTuple):
    """log f (P n,) at x0, and its gradient by x0."""

    value: Tensor
    by_x0: Tensor


class Passed(NamedTuple):
    """What a pass through the network and back brings: x0, log f (P n,) there, its gradients by x and by x0."""

    x0: Tensor
    value: Tensor
    by_x: Tensor
    by_x0: Tensor


def check_reward(reward: Reward, method: object) -> None:
    """Raises ValueError for a reward that says that it has no gradient, or none of one picture alone."""
    reward = getattr(reward, "preview", reward)
    if getattr(reward, "differentiable", True) is not True:
        raise ValueError(
            f"{method!r} follows the gradient of its reward, and {reward!r} has none; use a differentiable reward "
            "(steer.rewards says which are), or a search (code, fk), which needs no gradient."
        )
    if not getattr(reward, "pointwise", True):
        raise ValueError(f"{method!r} needs the gradient of each picture's own score; {reward!r} compares pictures.")


def log_value(state: State, reward: Reward, x0: Tensor, beta: float = 1.0, offsets: Tensor | None = None) -> Tensor:
    """(P n,) beta r(x0), or log mean_i exp(beta r(x0 + offset_i)); 0 for pruned slots, which are not scored.

    Where the reward has a `preview`, that one is asked. Raises ValueError for scores of a wrong shape, and for scores
    without a graph where x0 has one.
    """
    reward = getattr(reward, "preview", reward)
    rows = live(state).flatten().nonzero()[:, 0]
    prompts = [state.run.prompts[row // state.n] for row in rows.tolist()]
    rows = rows.to(x0.device)
    clean = x0[rows][None] if offsets is None else x0[rows] + offsets[:, rows]
    samples = len(clean)
    clean = clean.flatten(0, 1)
    seen = state.run.decode(clean) if getattr(reward, "needs_decode", True) else clean
    state.run.ledger.reward_calls += len(seen)
    scores = reward(seen, prompts * samples)
    if scores.shape != (len(seen),):
        raise ValueError(f"{reward!r} returned shape {tuple(scores.shape)}; expected one score a picture, {len(seen)}.")
    if x0.requires_grad and not scores.requires_grad:
        raise ValueError(f"{reward!r} cuts the graph between picture and score, so it has no gradient; use a search.")
    values = torch.logsumexp(beta * scores.unflatten(0, (samples, -1)), 0) - math.log(samples)
    return values.new_zeros(len(x0)).index_put((rows.to(values.device),), values)


def through_network(state: State, reward: Reward, beta: float = 1.0, offsets: Tensor | None = None) -> Passed:
    """One forward and one backward pass of the network at state.x; rows and backward rows are counted."""
    ledger, before = state.run.ledger, state.run.ledger.rows
    with torch.enable_grad():
        x = state.x.detach().requires_grad_()
        x0 = state.denoise(x, state.level)
        ran = ledger.rows - before
        value = log_value(state, reward, x0, beta, offsets)
        by_x, by_x0 = torch.autograd.grad(value.sum(), (x, x0))
    ledger.backward_rows += ran
    return Passed(x0.detach(), _spoken_for(value.detach(), state), finite(by_x, state), finite(by_x0, state))


def at_x0(state: State, reward: Reward, x0: Tensor, beta: float = 1.0, offsets: Tensor | None = None) -> Slope:
    """The gradient by x0 alone: no pass of the network."""
    with torch.enable_grad():
        x0 = x0.detach().requires_grad_()
        value = log_value(state, reward, x0, beta, offsets)
        (by_x0,) = torch.autograd.grad(value.sum(), x0)
    return Slope(_spoken_for(value.detach(), state), finite(by_x0, state))


def finite(gradient: Tensor, state: State) -> Tensor:
    """The gradient, zero for every particle for which it is not finite; a pruned slot has its speaker's."""
    good = torch.isfinite(gradient).flatten(1).all(1)
    if not good.all():
        warnings.warn(
            f"step {state.i}: the reward's gradient is NaN or infinite for {int((~good).sum())} of {len(good)} "
            "particles; they move on unguided.",
            stacklevel=3,
        )
        gradient = torch.where(good.reshape(-1, *[1] * (gradient.ndim - 1)), gradient, 0)
    return _spoken_for(gradient, state)


def _spoken_for(values: Tensor, state: State) -> Tensor:
    return values[state.alias.to(values.device)]
