"""Solvers against the exact probability flow of a Gaussian, and their noise against exact recursions."""

import math

import pytest
import torch
from toys import estimate, gaussian, moments, run

from steer.diffusion.schedule import flow, karras, vp
from steer.diffusion.solve import ddim, dpmpp_2m, heun, noise_scale

MEAN, VARIANCE = 1.5, 0.3
PRIOR = gaussian(MEAN, VARIANCE, torch.float64)


def marginal(level) -> float:
    """Standard deviation of the noised prior."""
    return math.sqrt(level.alpha**2 * VARIANCE + level.sigma**2)


def error(solver, schedule) -> float:
    """Distance from the exact end of the flow: x keeps its number of standard deviations from the mean."""
    begin = schedule[0]
    x = torch.tensor([[begin.alpha * MEAN + 1.7 * marginal(begin)]], dtype=torch.float64)
    end = run(PRIOR, x=x, schedule=schedule, solver=solver).x
    return float((end - (MEAN + 1.7 * math.sqrt(VARIANCE))).abs())


def order(solver, schedule) -> float:
    """The slope of log error over log step length."""
    coarse, fine = error(solver, schedule(80)), error(solver, schedule(320))
    return math.log(coarse / fine) / math.log(4)


def refined(steps):
    return karras(steps, sigma_max=10.0, sigma_min=1e-4)


@pytest.mark.parametrize(("solver", "expected"), [(ddim(0), 1), (heun(), 2), (dpmpp_2m(), 2)])
def test_order_of_convergence(solver, expected):
    assert order(solver, refined) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("schedule", [vp, flow])
@pytest.mark.parametrize("solver", [heun(), dpmpp_2m()])
def test_second_order_from_pure_noise(solver, schedule):
    """The first step, from alpha = 0, is Euler's over an infinite stretch of log SNR: the order is reached slowly."""
    assert order(solver, schedule) > 1.55
    assert error(solver, schedule(80)) < error(ddim(0), schedule(80)) / 4


TABLE = {0.0: (0.225, 0.273, 0.292, 0.299), 0.5: (0.217, 0.267, 0.289, 0.299), 1.0: (0.182, 0.247, 0.282, 0.298)}


@pytest.mark.parametrize("eta", TABLE)
def test_flow_variance_table(eta):
    """N(1.5, 0.3) after 10, 30, 100 and 1000 equal flow steps: an independent exact recursion gave these numbers."""
    for steps, expected in zip((10, 30, 100, 1000), TABLE[eta], strict=True):
        mean, var = moments(PRIOR, flow(steps), eta)
        assert mean == pytest.approx(1.5, abs=1e-9)
        assert var == pytest.approx(expected, abs=5.1e-4)


@pytest.mark.parametrize(("eta", "expected"), [(0.0, 0.171), (0.5, 0.165), (1.0, 0.136)])
def test_flow_variance_with_shift(eta, expected):
    assert moments(PRIOR, flow(10, shift=3.0), eta)[1] == pytest.approx(expected, abs=5.1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("schedule", [vp, flow])
def test_ancestral_steps_keep_the_marginal(schedule, seed):
    """Samples have the mean and variance of the exact recursion at their own step count."""
    x = run(gaussian(MEAN, VARIANCE), n=1, groups=20_000, seed=seed, schedule=schedule(100)).x[:, 0]
    mean, var = moments(PRIOR, schedule(100), 1.0)
    for values, exact in ((x, mean), ((x - mean).square(), var)):
        found, error = estimate(values)
        assert abs(found - exact) <= 3 * error


@pytest.mark.parametrize("schedule", [vp, flow])
def test_the_variance_that_is_missing_halves_with_the_step(schedule):
    coarse, fine = (VARIANCE - moments(PRIOR, schedule(steps), 1.0)[1] for steps in (250, 500))
    assert coarse / fine == pytest.approx(2, abs=0.1)
    assert fine < 0.006


@pytest.mark.parametrize("schedule", [vp, flow, karras])
def test_noise_scale(schedule):
    levels = schedule(10)
    scales = [noise_scale(a, b) for a, b in zip(levels[:-1], levels[1:], strict=True)]
    assert scales[-1] == 0
    assert all(0 < s <= b.sigma for s, b in zip(scales[:-1], levels[1:-1], strict=True))
    assert [noise_scale(a, b, 0.5) for a, b in zip(levels[:-1], levels[1:], strict=True)] == [s / 2 for s in scales]


def test_flow_noise_is_a_full_renoise_at_the_noisy_end_and_the_usual_sde_in_the_limit():
    """k^2 / ds tends to 2 s / (1 - s)."""
    start, then = flow(10)[:2]
    assert noise_scale(start, then) == then.sigma
    for s, limit in ((0.9, 18.0), (0.5, 2.0), (0.1, 2 / 9)):
        level, to = start._replace(alpha=1 - s, sigma=s), start._replace(alpha=1 - s + 1e-6, sigma=s - 1e-6)
        assert noise_scale(level, to) ** 2 / 1e-6 == pytest.approx(limit, rel=1e-4)


@pytest.mark.parametrize("schedule", [vp, flow, karras])
def test_schedules_run_from_noise_to_clean(schedule):
    for steps in (1, 2, 7):
        levels = schedule(steps)
        assert len(levels) == steps + 1
        assert levels[-1][:2] == (1.0, 0.0)
        assert all(a.sigma > b.sigma for a, b in zip(levels[:-1], levels[1:], strict=True))
        assert [level.progress for level in levels] == [i / steps for i in range(steps + 1)]


def test_karras_spacing_reaches_both_ends():
    levels = karras(9, 80.0, 0.002)
    assert levels[0].sigma == pytest.approx(80)
    assert levels[-2].sigma == pytest.approx(0.002)
    assert levels[4].sigma == pytest.approx(((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7)
