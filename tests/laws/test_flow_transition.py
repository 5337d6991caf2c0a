"""The stochastic transition for flows keeps the marginal: exact recursions of whole densities, no sampling."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from toys import gaussian, moments

from steer.diffusion.denoise import GaussianMixture
from steer.diffusion.schedule import flow
from steer.diffusion.solve import noise_scale, transition

GRID = torch.linspace(-4.5, 4.5, 901, dtype=torch.float64)
STEP = float(GRID[1] - GRID[0])
SPREAD = math.sqrt(0.05)
WEIGHTS = (0.3, 0.7)


def two_modes() -> GaussianMixture:
    """0.3 N(-1, 0.05) + 0.7 N(1, 0.05)."""
    means, stds = torch.tensor([[-1.0], [1.0]]), torch.full((2,), SPREAD)
    return GaussianMixture(*(values.double() for values in (means, stds, torch.tensor(WEIGHTS))))


def normal(x: torch.Tensor, mean: torch.Tensor, deviation: float) -> torch.Tensor:
    return torch.exp(-((x - mean) / deviation).square() / 2) / (deviation * math.sqrt(2 * math.pi))


def end(prior: GaussianMixture, steps: int, eta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Where every grid point of the last noisy level ends, and its probability: p'(y) = integral p(x) N(y; m(x), k^2).

    The trapezoid sum is exact to 1e-6 while k is wider than 0.8 of a cell, which it is at eta = 1; the ends of the grid
    cut off 1e-5; the last step, which draws no noise, is exact.
    """
    levels = flow(steps)
    density = normal(GRID, torch.zeros(1, dtype=torch.float64), 1.0)
    for level, to in zip(levels[:-1], levels[1:], strict=True):
        scale = noise_scale(level, to, eta)
        mean = transition(GRID[:, None], prior(GRID[:, None], level), level, to, scale, None)[:, 0]
        if to.sigma == 0:
            return mean, density * STEP
        density = normal(GRID[:, None], mean, scale) @ density * STEP
    raise AssertionError("a schedule ends at sigma = 0")


def flown(prior: GaussianMixture, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same at eta = 0, where every point moves by itself: 20,001 quantiles of the noise, equally probable."""
    share = (torch.arange(20_001, dtype=torch.float64) + 0.5) / 20_001
    x, levels = torch.special.ndtri(share)[:, None], flow(steps)
    for level, to in zip(levels[:-1], levels[1:], strict=True):
        x = transition(x, prior(x, level), level, to, 0.0, None)
    return x[:, 0], torch.full_like(share, 1 / len(share))


@functools.cache
def right_mode(steps: int, eta: float) -> tuple[float, float]:
    """Probability of the right mode, and its standard deviation."""
    x, p = end(two_modes(), steps, eta) if eta else flown(two_modes(), steps)
    assert float(p.sum()) == pytest.approx(1, abs=5e-5)
    p = torch.where(x > 0, p, 0)
    mean = (p * x).sum() / p.sum()
    return float(p.sum()), float(((p * (x - mean).square()).sum() / p.sum()).sqrt())


def test_the_density_recursion_is_that_of_the_moments():
    prior = gaussian(1.5, 0.3, torch.float64)
    x, p = end(prior, 30, 1.0)
    mean = float((p * x).sum())
    exact = moments(prior, flow(30), 1.0)
    assert (mean, float((p * (x - mean).square()).sum())) == pytest.approx(exact, abs=5e-5)


@pytest.mark.parametrize(("eta", "spread"), [(0.0, 0.222), (1.0, 0.212)])
def test_both_modes_are_kept(eta, spread):
    """100 steps: an independent implementation, sampled, found 0.698 and 0.703 on the right, and these deviations."""
    found = right_mode(100, eta)
    assert found[0] == pytest.approx(0.7, abs=0.004)
    assert found[1] == pytest.approx(spread, abs=0.0015)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_error_vanishes_with_the_step(eta):
    coarse, fine = (abs(right_mode(steps, eta)[1] - SPREAD) for steps in (25, 100))
    assert fine < coarse / 2.5


def test_noise_costs_variance_at_a_given_number_of_steps():
    """The price of a search: at eta = 1 the spread falls short by several times what it does at eta = 0."""
    quiet, noisy = (SPREAD - right_mode(100, eta)[1] for eta in (0.0, 1.0))
    assert 0 < 3 * quiet < noisy


@pytest.mark.parametrize(("steps", "expected"), [(10, 0.115), (30, 0.134), (100, 0.143), (1000, 0.149)])
def test_noise_of_the_whole_level_does_not_converge(steps, expected):
    """k = sigma', as in diffusers' `stochastic_sampling`: the variance of N(1.5, 0.3) ends at 0.15, not at 0.3."""
    prior, probe = gaussian(1.5, 0.3, torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    mean, variance, levels = 0.0, 1.0, flow(steps)
    for level, to in zip(levels[:-1], levels[1:], strict=True):
        offset, moved = transition(probe, prior(probe, level), level, to, to.sigma, None)[:, 0].tolist()
        mean = offset + (moved - offset) * mean
        variance = (moved - offset) ** 2 * variance + to.sigma**2
    assert mean == pytest.approx(1.5, abs=1e-9)
    assert variance == pytest.approx(expected, abs=5.1e-4)


def test_diffusers_stochastic_sampling_is_that_transition():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(10)
    x, x0 = torch.randn(2, 5, 1, generator=torch.Generator().manual_seed(0))
    level, to = flow(10)[3:5]
    level, to = (a._replace(sigma=float(s), alpha=1 - float(s)) for a, s in zip((level, to), scheduler.sigmas[3:5]))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    ours = transition(x, x0, level, to, to.sigma, noise)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = scheduler.step((x - x0) / level.sigma, scheduler.timesteps[3], x, return_dict=False)[0]
    assert torch.allclose(ours, theirs, atol=1e-6)
