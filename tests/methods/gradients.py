"""Laws and oracles of the gradients methods.

Law: at strength zero nothing happens, bit for bit, and the ledger is exact. Oracle: the paper's update written out at
every step of every scaling, where the denoiser is that of N(0, I); for the samplers, the posterior itself.
"""

from __future__ import annotations

import math

import torch
from methods.gradient_toys import (
    PEAK,
    SCHEDULES,
    SHARP,
    STEPS,
    affine,
    costs,
    counted,
    each_step,
    is_plain,
    jacobian,
    peaked,
    prior,
    shift,
    unit,
    uphill,
)
from methods.method import Method

from steer import fk, gradients
from steer.diffusion.controllers.gradients.priors import NormPrior
from steer.diffusion.loop import sample
from steer.diffusion.schedule import vp
from steer.diffusion.solve import ddim
from steer.diffusion.state import Level

T = STEPS


def alike(a, b, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def dps_law(make):
    is_plain(make(peaked, strength=0.0))
    costs(make(peaked, strength=0.1), T, T - 1, T - 1)  # at alpha = 0 no gradient is taken


def dps_oracle(make):
    def check(state, x0):
        taken = 0 if state.level.alpha == 0 else 0.1 * jacobian(state.level) / (-peaked(x0)).sqrt()[:, None]
        alike(shift(state)[1], taken * uphill(x0))

    for eta in (0.0, 1.0):
        each_step(make(peaked, strength=0.1), check, eta)


def lgd_law(make):
    is_plain(make(peaked, strength=0.0))
    costs(make(peaked, samples=5), T, T - 1, 5 * (T - 1))


def lgd_oracle(make):
    """For a linear reward the smoothed guidance is exact; for the peak it has the posterior mean as its limit."""

    def check(state, x0):
        level = state.level
        moved = 0.0 if level.alpha == 0 else 2 * level.sigma**2 / level.alpha * jacobian(level)
        alike(shift(state)[0], torch.tensor([[0.3 * moved, -0.5 * moved]], dtype=x0.dtype).expand_as(x0))

    each_step(make(lambda x, prompts: 0.3 * x[:, 0] - 0.5 * x[:, 1], strength=2.0, samples=3), check)

    def near(state, x0):
        variance = state.level.sigma**2 / (state.level.alpha**2 + state.level.sigma**2)
        exact = x0 + variance * uphill(x0) / (1 + 2 * SHARP * variance)
        if state.level.alpha > 0:
            assert (state.x0 - exact).abs().mean() < 0.06

    each_step(make(peaked, samples=2000), near, schedules=SCHEDULES[:1])


def freedom_law(make):
    is_plain(make(peaked, strength=0.0))
    costs(make(peaked, repeats=4, travel=(0.25, 0.5)), T + 2 * 3, T - 1 + 2 * 3, T - 1 + 2 * 3)


def freedom_oracle(make):
    """The released code's step, which is written for DDPM: l2 = 0.02 rms(eps) sigma / alpha c1 along the gradient."""

    def check(state, x0):
        (alpha, sigma), (alpha_to, _) = state.level[:2], state.to[:2]
        c1 = alpha_to * (1 - alpha**2 / alpha_to**2) / sigma**2
        noise = (state.x - alpha * x0) / sigma
        size = 0.0 if alpha == 0 else 0.02 * noise.square().mean(1, keepdim=True).sqrt() * sigma / alpha * c1
        alike(shift(state)[1], size * unit(uphill(x0)))

    each_step(make(peaked, repeats=2), check, schedules=SCHEDULES[:1])


def mpgd_law(make):
    is_plain(make(peaked, strength=0.0))
    costs(make(peaked, strength=0.1, repeats=3, travel=(0.25, 0.5)), T + 2 * 2, 0, T + 2 * 2)


def mpgd_oracle(make):
    def check(state, x0):
        alike(shift(state)[1], 0.1 * unit(uphill(x0)))

    each_step(make(peaked, strength=0.1), check, 0.5)


def tfg_law(make):
    is_plain(make(peaked, rho=0.0, mu=0.0))
    costs(make(peaked, inner=4, samples=3), T, T - 1, 3 * (4 * (T - 1) + 4))


def tfg_oracle(make):
    """Algorithm 1 without smoothing: Delta_t / sqrt(alpha_t) + sqrt(abar') Delta_0, alpha_t = abar / abar'."""

    def check(state, x0):
        levels = state.run.schedule
        ratios = [(level.alpha / to.alpha) ** 2 for level, to in zip(levels[:-1], levels[1:], strict=True)]
        weight = T * ratios[state.i] / sum(ratios)
        mean = torch.zeros_like(x0)
        for _ in range(3):
            mean = mean + 0.2 * weight * uphill(x0 + mean)
        variance = 0.3 * weight * jacobian(state.level) * uphill(x0) if state.level.alpha > 0 else 0 * x0
        alike(shift(state)[1], variance / max(1e-9, ratios[state.i]) ** 0.5 + state.to.alpha * mean)

    each_step(make(peaked, rho=0.3, mu=0.2, inner=3, gamma=0.0), check, 0.7)


def universal_law(make):
    is_plain(make(peaked, forward=0.0))
    costs(make(peaked, 1.0, backward=0.1, inner=3, repeats=2), 2 * T, 2 * (T - 1), 2 * (3 * (T - 1) + 3))


def universal_oracle(make):
    def check(state, x0):
        level, moved = state.level, torch.zeros_like(x0)
        for _ in range(3):
            moved = moved + 0.1 * uphill(x0 + moved)
        forward = 0.0 if level.alpha == 0 else 0.4 * level.sigma**2 / level.alpha * jacobian(level)
        alike(shift(state)[0], moved + forward * uphill(x0))

    each_step(make(peaked, forward=0.4, backward=0.1, inner=3, repeats=2), check)


def twisted_law(make):
    """Proposals of strength zero are Feynman-Kac steering, bit for bit."""
    ours, theirs = make(peaked, 0.5, every=2, strength=0.0), fk(peaked, 0.5, every=2)
    a, b = counted(ours, n=8), counted(theirs, n=8)
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.logw, b.logw)
    alike(ours.log_z(a), theirs.log_z(b), 1e-5)
    costs(make(peaked), T, T - 2, T)  # scored at every look but the first, and where a gradient is taken


def twisted_oracle(make):
    """Mean, variance and Z of the tilted posterior of this very sampler, within 3 standard errors."""
    steps, groups = 30, 40
    schedule = vp(steps)
    variance = 1.0
    for level, to in zip(schedule[:-1], schedule[1:], strict=True):
        c, k = affine(level, to)
        variance = c**2 * variance + k**2
    precision = 1 / variance + 2 * SHARP
    z = math.prod(
        math.exp(-SHARP * p**2 / (1 + 2 * SHARP * variance)) / math.sqrt(1 + 2 * SHARP * variance) for p in PEAK
    )
    spread = {}
    for search in (make(peaked), make(peaked, tempered=True), fk(peaked, 1.0, every=1)):
        state = counted(search, n=256, groups=groups, schedule=schedule)
        weights = torch.softmax(state.grouped(state.logw), -1)[..., None]
        x, mean = state.grouped(state.x), 2 * SHARP * torch.tensor(PEAK) / precision
        _agrees((weights * x).sum(1), mean)
        _agrees((weights * (x - mean).square()).sum(1), torch.full((2,), 1 / precision))
        estimates = search.log_z(state).exp()
        _agrees(estimates[:, None], torch.tensor([z]))
        spread[search] = float(estimates.std())
    assert 2 * spread[make(peaked)] < spread[fk(peaked, 1.0, every=1)]  # what the gradient is for


def _agrees(values: torch.Tensor, exact: torch.Tensor) -> None:
    values = values.double()
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - exact).abs() <= 3 * error).all(), (values.mean(0), exact, error)


SHORT = [Level(0.6, 0.8), Level(0.8, 0.6, progress=0.5), Level(1.0, 0.0, progress=1.0)]


def climbed(controller, particles: int = 6):
    """The finished samples of a deterministic run in float64 over two steps, in 8 dimensions."""
    x = 0.8 * torch.randn(particles, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    run = sample(prior(d=8), (8,), SHORT, controller, x=x, solver=ddim(0.0), prompts=[""] * particles)
    return list(run)[-1]


def noise_law(make):
    is_plain(make(peaked, iterations=0))
    before, after = climbed(()), climbed(make(peaked, iterations=3, steps=2))
    assert (peaked(after.x) >= peaked(before.x) - 1e-9).all()  # the first iterate is among the candidates
    ledger = after.run.ledger
    recomputed = 2  # of what is checkpointed
    assert (ledger.rows, ledger.backward_rows, ledger.reward_calls) == (6 * (recomputed * 3 * 2 + 3), 6 * 6, 6 * 3)


def reno_oracle(make):
    """Without the prior it finds the peak; with it, where the slope of reward and prior cancel."""
    assert peaked(climbed(make(peaked, iterations=120, lr=0.8, weight=0.0, steps=2)).x).min() > -1e-3
    z = torch.randn(4, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slope,) = torch.autograd.grad(NormPrior()(z).sum(), z)
    norm = z.detach().norm(dim=1, keepdim=True)
    alike(slope, z.detach() * (1 - 99 / norm**2))  # zero on the sphere of radius sqrt(99)


def dno_oracle(make):
    """Its regulariser leaves noise alone and finds what is not noise."""
    z = torch.randn(6, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    typical, floor = make(peaked).space.prior, 4 * math.log(2)
    assert (typical(z) < 1.5 * floor).all()
    assert (typical(3 * z) > 4 * floor).all()  # too long
    assert (typical(torch.ones_like(z)) > 4 * floor).all()  # of the right length, and nothing like noise
    block = torch.tensor([1.4, -1.4, 0.0, 0.2], dtype=z.dtype).repeat(1, 16)
    assert (typical(block) > 2 * typical(block[:, torch.randperm(64)])).all()  # the right numbers in a wrong order


def initno_oracle(make):
    """Reward ascent under the KL: stationary where the gradients cancel, at the peak without it."""
    assert peaked(climbed(make(peaked, iterations=120, lr=0.15, weight=0.0, steps=2)).x).min() > -1e-3
    space = make(peaked).space
    mean, log_variance = torch.tensor([[0.3, -0.2]]), torch.tensor([[0.1, 0.4]])
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    exact = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean(1)
    alike(space.penalty((mean, log_variance)), exact, 1e-5)


METHODS: dict[str, Method] = {
    "dps": Method(gradients.dps, dps_law, dps_oracle),
    "lgd": Method(gradients.lgd, lgd_law, lgd_oracle),
    "freedom": Method(gradients.freedom, freedom_law, freedom_oracle),
    "mpgd": Method(gradients.mpgd, mpgd_law, mpgd_oracle),
    "tfg": Method(gradients.tfg, tfg_law, tfg_oracle),
    "universal_guidance": Method(gradients.universal_guidance, universal_law, universal_oracle),
    "twisted": Method(gradients.twisted, twisted_law, twisted_oracle),
    "reno": Method(gradients.reno, noise_law, reno_oracle),
    "dno": Method(gradients.dno, noise_law, dno_oracle),
    "initno": Method(gradients.initno, noise_law, initno_oracle),
}
