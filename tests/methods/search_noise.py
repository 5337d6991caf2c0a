"""Laws and oracles of the methods that search over noise: whole initial noises, paths noised again, mixed noises."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from laws.toys import estimate, first, gaussian, moments, rows, run, winners
from scipy import stats

from steer import Controller
from steer.diffusion.controllers import Every, Renoised, Search, best_of_n, code
from steer.diffusion.denoise import GaussianMixture
from steer.diffusion.schedule import flow, karras, vp
from steer.diffusion.solve import ddim, noise_scale, transition
from steer.pick import stay

T = 12


def wide(d: int = 16) -> GaussianMixture:
    """N(0, I) in d dimensions."""
    return GaussianMixture(torch.zeros(1, d), torch.ones(1), torch.ones(1))


def near_two(x, prompts=None):
    """-|x - 2|^2 / d."""
    return -(x - 2).square().mean(-1)


def runner(prior, n: int, groups: int = 3, solver=None, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    solver = solver or ddim(0)
    return lambda controllers: run(prior, controllers, n=n, groups=groups, steps=T, solver=solver, generator=generator)


def noise_law(make) -> None:
    """One round is best-of-n, one of one particle is the plain run; more never lose, at as many rows each."""
    found = make(runner(gaussian(), 8), first, rounds=1)
    best = run(gaussian(), best_of_n(first), n=8, groups=3, steps=T, solver=ddim(0))
    assert torch.equal(found.x, winners(best))
    assert torch.equal(found.rewards, best.trace[-1].scores.amax(-1))
    plain = run(gaussian(), groups=3, steps=T, solver=ddim(0)).x
    assert torch.equal(make(runner(gaussian(), 1), first, rounds=1).x, plain)
    for radius in (None, 0.3):
        found = make(runner(wide(), 4), near_two, rounds=5, radius=radius)
        assert (found.ledger.rows, found.ledger.reward_calls) == (5 * 4 * 3 * T, 5 * 4 * 3)
        assert (found.history.diff(dim=0) >= 0).all()
        assert torch.equal(found.rewards, found.history[-1])
        again = run(wide(), steps=T, groups=3, x=found.noise, solver=ddim(0))
        assert torch.allclose(again.x, found.x, atol=1e-5)
        assert torch.allclose(near_two(found.x), found.rewards)


def noise_oracle(make) -> None:
    """Random: with r(x) = x the distribution function is Phi^(n rounds). Zero order gets further in 16 dimensions."""
    spread = math.sqrt(moments(gaussian(dtype=torch.float64), vp(T), eta=0.0)[1])
    x = make(runner(gaussian(), 4, groups=1500), first, rounds=3).x[:, 0]
    assert stats.kstest(x, lambda v: stats.norm(0, spread).cdf(v) ** 12).pvalue > 0.01
    assert stats.kstest(x, lambda v: stats.norm(0, spread).cdf(v) ** 9).pvalue < 1e-4
    random, near = (make(runner(wide(), 4, 60), near_two, rounds=10, radius=r).rewards for r in (None, 0.5))
    (low, a), (high, b) = estimate(random), estimate(near)
    assert high - low > 5 * math.hypot(a, b)


def paths_law(make) -> None:
    """Under an ODE copies share rows until they part: beams rows a step, n (back + 1) more at a look, n at first."""
    for solver in (ddim(0), ddim(1)):
        search = make(first, 2, 4, back=2)
        plain = run(gaussian(), steps=T, solver=solver)
        assert torch.equal(run(gaussian(), search, n=1, steps=T, solver=solver).x, plain.x)
    n, beams, back, looks = 8, 2, 2, 2
    spent = rows(make(first, beams, 4, back=back), n=n, steps=T, solver=ddim(0))
    assert spent == 5 * n + beams * (T - 5) + looks * n * (back + 1)  # all n until the first look, at step 4


def paths_oracle(make) -> None:
    """Noised again and never chosen, the particles keep the law of the prior; chosen, they leave what an ODE can do."""
    for levels in (vp(100), flow(100), karras(100, sigma_max=20.0)):
        idle = Renoised(Search(first, Every(25), pick=stay), back=10)
        x = run(gaussian(), idle, n=8, groups=250, schedule=levels, solver=ddim(0)).x[:, 0]
        assert abs(float(x.mean())) < 3 / math.sqrt(2000)
        assert abs(float(x.var()) - 1) < 3 * math.sqrt(2 / 2000) + 0.03  # the bias of 100 steps
    found, best = (
        estimate(near_two(winners(run(wide(), search, n=8, groups=60, steps=40, solver=ddim(0)))))
        for search in (make(near_two, 2, 4, back=4), best_of_n(near_two))
    )
    assert found[0] - best[0] > 5 * math.hypot(found[1], best[1])


@dataclass(frozen=True)
class Lengths(Controller):
    """Notes |z| of the noise by which every particle has come here."""

    means: list
    lengths: list

    def look(self, state):
        if self.means and not state.finished:
            scale = noise_scale(state.run.schedule[state.i - 1], state.level, state.run.eta)
            self.lengths.append(((state.x - self.means[-1]) / scale).norm(dim=-1))
        if not state.finished:
            scale = noise_scale(state.level, state.to, state.run.eta)
            self.means.append(transition(state.x, state.x0, state.level, state.to, scale, None))
        return state


def demon_law(make) -> None:
    """n + 1 rows a step, and mixed noise is as long as sqrt(d), which drawn noise is not."""
    assert torch.equal(run(wide(), make(near_two), n=1, steps=T).x, run(wide(), steps=T).x)
    assert rows(make(first), n=8, steps=T) == 1 + (T - 1) * (8 + 1)
    notes = Lengths([], [])
    state = run(wide(), [make(near_two), notes], n=8, groups=3, steps=T)
    assert torch.allclose(torch.stack(notes.lengths), torch.tensor(4.0), atol=1e-3)
    assert all(len(group.unique(dim=0)) == 1 for group in state.grouped(state.x))
    assert [look.i for look in state.trace] == list(range(1, T + 1))


def demon_oracle(make) -> None:
    """A step that may only point noise where the mix does gets further in 16 dimensions than the best single noise."""
    mixed, chosen = (
        estimate(near_two(winners(run(wide(), search, n=8, groups=60, steps=40))))
        for search in (make(near_two), code(near_two, block=1))
    )
    assert mixed[0] - chosen[0] > 3 * math.hypot(mixed[1], chosen[1])
