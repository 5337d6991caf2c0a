"""CoDe's case study I: reward grows with n, and divergence from the prior stays in bounds (arXiv 2502.00968)."""

import functools
import math

import pytest
import torch
from scipy import stats
from toys import estimate, first, gaussian, moments, near_corner, run, three_modes, winners

from steer.bench.toys import divergence
from steer.diffusion.controllers.search import best_of_n, code
from steer.diffusion.schedule import vp

STEPS = 100


def bound(n: int, blocks: float = 1) -> float:
    """KL(best of n || prior) = ln n - (n - 1) / n, at most that for each block."""
    return blocks * (math.log(n) - (n - 1) / n)


@functools.cache
def searched(n: int, block: int, seed: int = 0) -> torch.Tensor:
    return winners(run(three_modes(), code(near_corner, block), n=n, groups=1500, steps=STEPS, seed=seed))


def test_the_estimator_on_known_divergences():
    g = torch.Generator().manual_seed(0)
    prior, x = three_modes(), three_modes().sample(3000, g)
    value, error = divergence(x, prior.log_prob)
    assert abs(value) <= 3 * error < 0.1
    shifted = 0.5 * torch.randn(3000, 2, generator=g) + torch.tensor([1.0, 0.0])
    exact = 0.5 * (2 * 0.25 + 1 - 2 - 2 * math.log(0.25))  # KL(N(m, s^2 I) || N(0, I)), d = 2
    value, error = divergence(shifted, lambda x: -x.square().sum(-1) / 2 - math.log(2 * math.pi))
    assert abs(value - exact) <= 3 * error


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_best_of_n_diverges_by_exactly_the_bound(n, seed):
    """In one dimension with r(x) = x the winner's distribution function is Phi^n, and KL = ln n - (n - 1) / n."""
    spread = math.sqrt(moments(gaussian(dtype=torch.float64), vp(30))[1])
    prior = stats.norm(0, spread)
    x = winners(run(gaussian(), best_of_n(first), n=n, groups=3000, steps=30, seed=seed))
    assert stats.kstest(x[:, 0], lambda v: prior.cdf(v) ** n).pvalue > 0.01
    assert stats.kstest(x[:, 0], lambda v: prior.cdf(v) ** (n + 1)).pvalue < 1e-4
    value, error = divergence(x, lambda x: torch.from_numpy(prior.logpdf(x[:, 0])))
    assert abs(value - bound(n)) <= 3 * error


@pytest.mark.parametrize("block", [10, STEPS // 2, STEPS])
def test_reward_grows_with_n(block):
    rewards = [estimate(near_corner(searched(n, block))) for n in (1, 2, 4, 8)]
    for (low, a), (high, b) in zip(rewards[:-1], rewards[1:], strict=True):
        assert high >= low - math.hypot(a, b)
    assert rewards[-1][0] - rewards[0][0] > 5 * math.hypot(rewards[0][1], rewards[-1][1])


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("block", [10, STEPS // 2, STEPS])
def test_divergence_is_within_the_bound(block, n):
    """The sampler's own divergence from the prior (n = 1: the bias of its steps) comes on top of the bound."""
    own, own_error = divergence(searched(1, block, seed=9), three_modes().log_prob)
    value, error = divergence(searched(n, block), three_modes().log_prob)
    assert value <= bound(n, STEPS / block) + max(own, 0) + 3 * math.hypot(error, own_error)


def test_divergence_grows_with_the_number_of_blocks():
    """More choices, more divergence: a search of ten blocks breaks the bound of one, so the bound is no empty test."""
    values = [divergence(searched(8, block), three_modes().log_prob) for block in (STEPS, STEPS // 2, 10)]
    for (low, a), (high, b) in zip(values[:-1], values[1:], strict=True):
        assert high - low > 3 * math.hypot(a, b)
    assert values[-1][0] > bound(8) + 10 * values[-1][1]
