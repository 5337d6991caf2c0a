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
from steer.diffusion.solve import noise_scale, transition
from steer.diffusion.state import Level, State

STRENGTH, PEAK = 0.75, 2.0


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


def tilted(variance: float = 1.0, beta: float = 1.0) -> tuple[float, float]:
    """Mean and variance of N(0, variance) exp(beta quadratic): precision 1 / variance + 2 beta 0.75."""
    precision = 1 / variance + 2 * beta * STRENGTH
    return 2 * beta * STRENGTH * PEAK / precision, 1 / precision


def evidence(variance: float = 1.0, beta: float = 1.0) -> float:
    """Z = E[exp(beta quadratic(x))] for x ~ N(0, variance)."""
    growth = 1 + 2 * beta * STRENGTH * variance
    return math.exp(-beta * STRENGTH * PEAK**2 / growth) / math.sqrt(growth)


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


def run(
    prior: GaussianMixture, controllers=(), *, n: int = 1, groups: int = 1, seed: int = 0, steps: int = 200, **options
) -> State:
    """The finished state of a run over the cosine schedule, with seeded noise."""
    options.setdefault("schedule", vp(steps))
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    shape = (prior.means.shape[1],)
    return finished(sample(prior, shape, controllers=controllers, n=n, prompts=[""] * groups, **options))


def step(prior: GaussianMixture, level: Level, to: Level, eta: float = 1.0) -> tuple[float, float, float]:
    """DDIM over a Gaussian is affine with Gaussian noise, x' = a + c x + k z: its exact (a, c, k)."""
    probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    scale = noise_scale(level, to, eta)
    offset, moved = transition(probe, prior(probe, level), level, to, scale, None)[:, 0].tolist()
    return offset, moved - offset, scale


def moments(prior: GaussianMixture, schedule: list[Level], eta: float = 1.0) -> tuple[float, float]:
    """Mean and variance that DDIM over a Gaussian ends with at this number of steps, exactly."""
    mean, variance = schedule[0].alpha * float(prior.means), schedule[0].sigma ** 2
    for level, to in zip(schedule[:-1], schedule[1:], strict=True):
        a, c, k = step(prior, level, to, eta)
        mean, variance = a + c * mean, c**2 * variance + k**2
    return mean, variance


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


def off(state: State, mean: float, variance: float) -> list[float]:
    """Distances of the weighted particles from the exact mean and variance, in standard errors over the prompts."""
    x = state.x[:, 0]
    found = estimate(weighted(state, x)), estimate(weighted(state, (x - mean).square()))
    return [(value - exact) / error for (value, error), exact in zip(found, (mean, variance), strict=True)]


def soft_limit(steps: int) -> tuple[float, float]:
    """Mean and variance of soft decoding of N(0, 1) by `quadratic` with unlimited particles, over the cosine schedule.

    Each step then draws from p(x' | x) exp(r(x0hat(x'))): a product of two Gaussians, as x0hat = alpha x here.
    """
    prior, levels, mean, variance = gaussian(dtype=torch.float64), vp(steps), 0.0, 1.0
    for level, to in zip(levels[:-2], levels[1:-1], strict=True):
        a, c, k = step(prior, level, to)
        precision = 1 / k**2 + 2 * STRENGTH * to.alpha**2
        pull = (1 / k**2) / precision
        mean = pull * (a + c * mean) + 2 * STRENGTH * to.alpha * PEAK / precision
        variance = (pull * c) ** 2 * variance + 1 / precision
    a, c, _ = step(prior, *levels[-2:])  # the last step draws no noise, so there is nothing left to choose from
    return a + c * mean, c**2 * variance


class Counting:
    """A denoiser that counts the rows it really sees."""

    def __init__(self, prior: GaussianMixture | None = None):
        self.prior, self.rows = prior or gaussian(), 0

    def __call__(self, x: Tensor, level: Level, cond=None) -> Tensor:
        self.rows += len(x)
        return self.prior(x, level, cond)

    means = property(lambda self: self.prior.means)


def rows(controllers=(), *, n: int = 4, groups: int = 3, steps: int = 12, **options) -> int:
    """Rows of a run for one prompt, as the ledger has them and as the denoiser saw them."""
    denoiser = Counting()
    counted = run(denoiser, controllers, n=n, groups=groups, steps=steps, **options).run.ledger.rows
    assert counted == denoiser.rows
    assert counted % groups == 0
    return counted // groups
