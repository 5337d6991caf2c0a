"""Toy posteriors whose tilted distributions are known, and short ways to run and to measure on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.diffusion.control import Controller
from steer.diffusion.denoise import GaussianMixture
from steer.diffusion.loop import finished, sample
from steer.diffusion.schedule import vp
from steer.diffusion.state import State

# N(0, 1) tilted by exp(-0.75 (x - 2)^2) has precision 1 + 2 * 0.75 = 2.5 and mean 2 * 0.75 * 2 / 2.5 = 1.2
TILTED_MEAN, TILTED_VARIANCE, STRENGTH, PEAK = 1.2, 0.4, 0.75, 2.0


def gaussian(mean: float = 0.0, variance: float = 1.0, dtype: torch.dtype = torch.float32) -> GaussianMixture:
    """N(mean, variance) in one dimension."""
    return GaussianMixture(*(torch.tensor(v, dtype=dtype) for v in ([[mean]], [math.sqrt(variance)], [1.0])))


def three_modes() -> GaussianMixture:
    """The prior of CoDe's case study I (arXiv 2502.00968)."""
    return GaussianMixture(torch.tensor([[2.0, 8.0], [5.0, 2.0], [8.0, 8.0]]), torch.ones(3), torch.full((3,), 1 / 3))


def near_corner(x: Tensor, prompts: list[str] | None = None) -> Tensor:
    """The reward of CoDe's case study I: exp(-|x - (7, 7)|)."""
    return torch.exp(-(x - 7).norm(dim=-1))


def quadratic(x: Tensor, prompts: list[str] | None = None) -> Tensor:
    """-0.75 (x - 2)^2, which tilts N(0, 1) to N(1.2, 0.4)."""
    return -STRENGTH * (x[:, 0] - PEAK).square()


def first(x: Tensor, prompts: list[str] | None = None) -> Tensor:
    """The first coordinate."""
    return x[:, 0]


@dataclass(frozen=True)
class Gather(Controller):
    """Applies one fixed index (n,) to every prompt at step `at`."""

    index: tuple[int, ...]
    at: int
    logw: tuple[float, ...] | None = None

    def look(self, state: State) -> State:
        if state.i != self.at:
            return state
        groups = len(state.run.prompts)
        logw = None if self.logw is None else torch.tensor(self.logw).expand(groups, -1)
        return state.gather(torch.tensor(self.index).expand(groups, -1), logw)


def run(prior: GaussianMixture, controllers=(), *, n: int = 1, groups: int = 1, seed: int = 0, steps: int = 200, **options) -> State:
    """The finished state of a run over the cosine schedule, with seeded noise."""
    options.setdefault("schedule", vp(steps))
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    shape = (prior.means.shape[1],)
    return finished(sample(prior, shape, controllers=controllers, n=n, prompts=[""] * groups, **options))


def winners(state: State) -> Tensor:
    """(P, ...) the particle in slot 0 of every prompt: the chosen one, after a greedy search."""
    return state.grouped(state.x)[:, 0]


def weighted(state: State, values: Tensor) -> Tensor:
    """(P,) means of values (P n,) under the normalised weights of every prompt."""
    return (torch.softmax(state.grouped(state.logw), -1) * state.grouped(values)).sum(-1)


def estimate(values: Tensor) -> tuple[float, float]:
    """Mean and standard error of independent values."""
    values = values.double()
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))
