"""Soft value-based decoding at its two ends, beta = 0 and beta -> infinity, and its limit for many particles."""

import math

import pytest
import torch
from scipy import stats
from toys import estimate, gaussian, moments, near_corner, quadratic, run, soft_limit, three_modes, winners

from steer.diffusion.controllers.search import code, svdd
from steer.diffusion.schedule import vp

EXACT = gaussian(dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beta_zero_is_the_prior(seed):
    x = winners(run(gaussian(), svdd(quadratic, 0.0), n=4, groups=1500, steps=100, seed=seed))[:, 0]
    assert stats.kstest(x, stats.norm(0, math.sqrt(moments(EXACT, vp(100))[1])).cdf).pvalue > 0.01
    assert stats.kstest(x, stats.norm(0.2, 1).cdf).pvalue < 1e-4  # the test would see a shift of 0.2


@pytest.mark.parametrize("block", [1, 5, 20])
def test_beta_without_bound_is_the_arg_max(block):
    soft, hard = (run(three_modes(), code(near_corner, block, beta), n=4, groups=20, steps=20) for beta in (1e9, None))
    assert torch.equal(soft.x, hard.x)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_many_particles_reach_the_exact_limit(seed):
    """Its mean is 1.53, not 1.2: r(x0hat) stands for the soft value log E exp(r(x0)), which is flatter."""
    mean, variance = soft_limit(100)
    x = winners(run(gaussian(), svdd(quadratic, 1.0), n=48, groups=400, steps=100, seed=seed))[:, 0]
    for values, exact in ((x, mean), ((x - mean).square(), variance)):
        found, error = estimate(values)
        assert abs(found - exact) <= 3 * error
    assert estimate(x)[0] > 1.2 + 5 * estimate(x)[1]


def test_reward_grows_with_beta():
    rewards = [
        estimate(quadratic(winners(run(gaussian(), svdd(quadratic, b), n=8, groups=300, steps=60))))
        for b in (0.0, 0.3, 3.0)
    ]
    for (low, a), (high, b) in zip(rewards[:-1], rewards[1:], strict=True):
        assert high - low > 3 * math.hypot(a, b)
