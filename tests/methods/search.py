"""Laws and oracles of the search methods.

Law: one particle is the plain run, and at its end points a search is another, bit for bit, at exactly known rows.
Oracle: the tilted posterior and its evidence, an order statistic, or the mode, all known exactly on the toys.
"""

from __future__ import annotations

import math

import torch
from laws.toys import (
    estimate,
    evidence,
    first,
    gaussian,
    moments,
    near_corner,
    off,
    quadratic,
    rows,
    run,
    soft_limit,
    three_modes,
    tilted,
    winners,
)
from methods import search_noise
from methods.method import Method
from scipy import stats

from steer.diffusion import controllers
from steer.diffusion.schedule import vp
from steer.diffusion.solve import ddim

N, T = 8, 12


def plain_at_one(search, **options) -> None:
    """One particle is the plain run, bit for bit and row for row."""
    assert torch.equal(run(gaussian(), search, n=1, steps=T, **options).x, run(gaussian(), steps=T, **options).x)
    assert rows(search, n=1, steps=T, **options) == T


def same(one, other, n: int = N, prior=None, reward_calls: bool = True, **options) -> None:
    """Two searches end in the same particles at the same cost."""
    a, b = (run(prior or three_modes(), search, n=n, groups=3, steps=T, **options) for search in (one, other))
    assert torch.equal(winners(a), winners(b))
    assert a.run.ledger.rows == b.run.ledger.rows
    assert a.run.ledger.reward_calls == b.run.ledger.reward_calls


def reaches_the_mode(search, n: int = N, within: float = 0.01) -> None:
    """N(0, 1) and a reward with its peak at 2."""
    mean, error = estimate(winners(run(gaussian(), search, n=n, groups=100, steps=100))[:, 0])
    assert abs(mean - 2) < within + 3 * error < 0.1


def tilts_exactly(search, n: int = 128) -> None:
    """Mean, variance and evidence of N(0, 1) exp(quadratic), within 3 standard errors over 100 prompts."""
    left = moments(gaussian(dtype=torch.float64), vp(60))[1]  # the sampler's own variance at this number of steps
    state = run(gaussian(), search, n=n, groups=100, steps=60)
    assert max(map(abs, off(state, *tilted(left)))) <= 3
    z, error = estimate(search.log_z(state).exp())
    assert abs(z - evidence(left)) <= 3 * error < 0.1 * evidence(left)


def best_of_n_law(make) -> None:
    plain_at_one(make(first), solver=ddim(0))
    plain = run(gaussian(), n=N, groups=3, steps=T)
    assert torch.equal(winners(run(gaussian(), make(first), n=N, groups=3, steps=T)), plain.grouped(plain.x).amax(1))
    assert rows(make(first), n=N, steps=T) == N * T


def best_of_n_oracle(make) -> None:
    """With r(x) = x the winner's distribution function is Phi^n."""
    spread = math.sqrt(moments(gaussian(dtype=torch.float64), vp(T))[1])
    x = winners(run(gaussian(), make(first), n=4, groups=2000, steps=T))[:, 0]
    assert stats.kstest(x, lambda v: stats.norm(0, spread).cdf(v) ** 4).pvalue > 0.01
    assert stats.kstest(x, lambda v: stats.norm(0, spread).cdf(v) ** 5).pvalue < 1e-4


def code_law(make) -> None:
    plain_at_one(make(first, 3))
    assert rows(make(first, 5), n=N, steps=T) == N * (T - 1) + 1
    same(make(near_corner, 3, 1e9), make(near_corner, 3))


def svdd_law(make) -> None:
    plain_at_one(make(first, 1.0))
    same(make(near_corner), controllers.code(near_corner, block=1))
    same(make(near_corner, 1e9), make(near_corner))


def svdd_oracle(make) -> None:
    mean, variance = soft_limit(60)
    x = winners(run(gaussian(), make(quadratic, 1.0), n=48, groups=200, steps=60))[:, 0]
    for values, exact in ((x, mean), ((x - mean).square(), variance)):
        found, error = estimate(values)
        assert abs(found - exact) <= 3 * error


def weighs_by_the_final_reward(search, beta: float) -> None:
    """Untouched paths, whatever was scored on the way: their weights are softmax(beta r(x))."""
    state, plain = (run(gaussian(), controllers, n=16, steps=8) for controllers in (search, ()))
    assert torch.equal(state.x, plain.x)
    assert torch.allclose(torch.log_softmax(state.logw, 0), torch.log_softmax(beta * state.x[:, 0], 0), atol=1e-5)
    assert torch.allclose(search.log_z(state), (beta * state.x[:, 0]).logsumexp(0) - math.log(16), atol=1e-5)


def fk_law(make) -> None:
    plain_at_one(make(first, 1.0, 2))
    for potential in ("diff", "max", "sum"):
        weighs_by_the_final_reward(make(first, 0.7, 2, potential, ess=1e-3), 0.7)


def adaptive_fk(reward, beta, block: int = 1, longest: int = 8, **options):
    return controllers.fk(reward, beta, controllers.Adaptive(block, longest), **options)


def adaptive_law(make) -> None:
    """A reward that says nothing is asked ever less often, one that always does at every block."""
    plain_at_one(make(first, 1.0))
    silent = run(gaussian(), make(lambda x, prompts: 0 * x[:, 0], 1.0), n=4, groups=2, steps=40)
    assert [look.i for look in silent.trace] == [1, 3, 7, 15, 23, 31, 39, 40]
    assert silent.run.ledger.reward_calls == 8 * 4 * 2
    telling = run(gaussian(), make(first, 1e4, block=3), n=4, groups=2, steps=12)
    assert [look.i for look in telling.trace] == [3, 6, 9, 12]


def adaptive_oracle(make) -> None:
    search, eager = make(quadratic, 1.0), controllers.fk(quadratic, 1.0, 1)
    tilts_exactly(search)
    calls = [run(gaussian(), s, n=128, groups=4, steps=60).run.ledger.reward_calls for s in (search, eager)]
    assert calls[0] < calls[1] / 2


def smc_law(make) -> None:
    plain_at_one(make(first, 1.0, 2))
    weighs_by_the_final_reward(make(first, 0.0, 2), 0.0)


def smc_oracle(make) -> None:
    """The Gaussian, and three modes under r = exp(-|x - (7, 7)|), there against weighted samples of the sampler."""
    tilts_exactly(make(quadratic, 1.0))
    plain = near_corner(run(three_modes(), groups=10_000, seed=9, steps=60).x)
    weight = (4 * plain).exp()
    exact = float((weight * plain).mean() / weight.mean())
    exact_error = estimate(weight * (plain - exact) / weight.mean())[1]
    search = make(near_corner, 4.0)
    state = run(three_modes(), search, n=128, groups=60, steps=60)
    scored = (torch.softmax(state.grouped(state.logw), -1) * state.grouped(near_corner(state.x))).sum(-1)
    mean, error = estimate(scored)
    assert abs(mean - exact) <= 3 * math.hypot(error, exact_error)
    (z, z_error), (plain_z, plain_error) = estimate(search.log_z(state).exp()), estimate(weight)
    assert abs(z - plain_z) <= 3 * math.hypot(z_error, plain_error)


def beam_law(make) -> None:
    plain_at_one(make(first, 1, 3))
    same(make(near_corner, 1, 3), controllers.code(near_corner, 3, common_start=False))
    same(make(near_corner, 3, 3, diversity=1e-12), make(near_corner, 3, 3))
    last = run(gaussian(), make(first, 2, T), n=N, steps=T)
    best = run(gaussian(), n=N, steps=T).x.sort(0, descending=True).values[:2]
    assert torch.equal(last.x, best.repeat(N // 2, 1))


def diverse_law(make) -> None:
    plain_at_one(make(first, 2, 3))
    same(make(near_corner, 3, 3, diversity=0.0), controllers.beam(near_corner, 3, 3))


def modes(search, groups: int = 40) -> float:
    """How many of the three modes the particles of a prompt end at, on average."""
    state = run(three_modes(), search, n=12, groups=groups, steps=60)
    nearest = torch.cdist(state.x, three_modes().means).argmin(-1)
    return sum(len(group.unique()) for group in state.grouped(nearest)) / groups


def diverse_oracle(make) -> None:
    """Beams that are told apart end at more modes than the best ones do, under a reward that prefers one mode."""
    lone = modes(controllers.beam(near_corner, 3, 10))
    assert modes(make(near_corner, 3, 10, diversity=10.0)) > lone + 0.5


def funnel_law(make) -> None:
    widths = (8, 4, 2, 1)
    plain_at_one(make(first, widths, 3))
    assert rows(make(first, widths, 3), n=8, steps=12) == 3 * (8 + 4 + 2 + 1) + (8 - 4) + (4 - 2) + (2 - 1)
    unicode = (10, 6, 6, 4, 4, 2, 2, 2, 2, 2)
    spent = rows(make(first, unicode, 5, keep=1), n=10, steps=50)
    assert spent == 5 * sum(unicode) + 10 - 2 == 208 < rows(controllers.code(first, 5), n=10, steps=50) == 491
    same(make(near_corner, (N,) * 4, 3, keep=1), controllers.code(near_corner, 3, common_start=False))
    same(make(near_corner, (N,), T), controllers.best_of_n(near_corner), solver=ddim(0))


def halving_law(make) -> None:
    plain_at_one(make(first, 2), solver=ddim(0))
    assert rows(make(first, 2), n=8, steps=12) == 8 * 3 + 4 * 2 + 2 * 2 + 1 * 5
    assert rows(make(first, 4, one_of=4), n=8, steps=12, solver=ddim(0)) == 8 * 5 + 2 * 4 + 1 * 3
    same(make(near_corner, T), controllers.best_of_n(near_corner), solver=ddim(0))


def halving_oracle(make) -> None:
    """Over a Gaussian an ODE is increasing, so the leader of the first look wins: all of best-of-n at fewer rows."""
    early, whole = (
        run(gaussian(dtype=torch.float64), search, n=16, groups=50, steps=20, solver=ddim(0))
        for search in (make(first, 1), controllers.best_of_n(first))
    )
    assert torch.equal(winners(early), winners(whole))
    assert early.run.ledger.rows == 50 * (16 * 2 + 8 + 4 + 2 + 15) < whole.run.ledger.rows / 5


class Falling:
    """A reward that no later look ever beats."""

    def __init__(self):
        self.level = 0.0

    def __call__(self, x, prompts):
        self.level -= 1000
        return self.level + x[:, 0]


def rollover_law(make) -> None:
    plain_at_one(make(first, 1, 3))
    same(make(Falling(), N, 3), controllers.code(Falling(), 3, common_start=False))
    for quota in (1, 2.5, 4):
        state = run(three_modes(), make(near_corner, quota, 2), n=N, groups=20, steps=T)
        scored = torch.stack([torch.isfinite(look.scores).sum(-1) for look in state.trace])
        assert (scored.cumsum(0) <= quota * torch.arange(1, T // 2 + 1)[:, None]).all()
        assert scored.sum() == state.run.ledger.reward_calls
        assert 1 <= scored.min() <= scored.max() <= N
    assert scored.unique().numel() > 2


def rollover_oracle(make) -> None:
    """What is saved where every child wins is spent where none does: 1 of 4 at four looks, all that is left at last."""
    scores = iter([0.0, 1.0, 2.0, 3.0, -1.0, -2.0])
    state = run(gaussian(), make(lambda x, prompts: torch.full((len(x),), next(scores)), 4, 2), n=16, steps=12)
    widths = [int(torch.isfinite(look.scores).sum()) for look in state.trace]
    assert widths == [4, 4, 1, 1, 1, 13]
    reaches_the_mode(make(quadratic, 4, 2), within=0.05)


METHODS: dict[str, Method] = {
    "best-of-n": Method(controllers.best_of_n, best_of_n_law, best_of_n_oracle),
    "code": Method(controllers.code, code_law, lambda make: reaches_the_mode(make(quadratic, 1), n=4)),
    "svdd": Method(controllers.svdd, svdd_law, svdd_oracle),
    "fk": Method(controllers.fk, fk_law, lambda make: tilts_exactly(make(quadratic, 1.0))),
    "fk-adaptive": Method(adaptive_fk, adaptive_law, adaptive_oracle),
    "smc": Method(controllers.smc, smc_law, smc_oracle),
    "beam": Method(controllers.beam, beam_law, lambda make: reaches_the_mode(make(quadratic, 2, 1))),
    "beam-diverse": Method(
        lambda reward, beams, block, diversity=1.0: controllers.beam(reward, beams, block, diversity),
        diverse_law,
        diverse_oracle,
    ),
    "funnel": Method(
        controllers.funnel,
        funnel_law,
        lambda make: reaches_the_mode(make(quadratic, (8, 6, 4, 4, 2), 1, keep=1), within=0.02),
    ),
    "halving": Method(controllers.halving, halving_law, halving_oracle),
    "rollover": Method(controllers.rollover, rollover_law, rollover_oracle),
    "noise-search": Method(controllers.noise_search, search_noise.noise_law, search_noise.noise_oracle),
    "paths": Method(controllers.paths, search_noise.paths_law, search_noise.paths_oracle),
    "demon": Method(controllers.Demon, search_noise.demon_law, search_noise.demon_oracle),
}
