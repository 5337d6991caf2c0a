"""A standard Gaussian, which is its own denoiser, and a reward with one peak: every guided step is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steer import Controller
from steer.diffusion.denoise import GaussianMixture
from steer.diffusion.loop import sample
from steer.diffusion.schedule import flow, karras, vp
from steer.diffusion.solve import ddim, noise_scale, transition
from steer.diffusion.state import Level, State

SHARP, PEAK = 0.75, (2.0, -1.0)
STEPS = 8
SCHEDULES = (vp(STEPS), flow(STEPS), karras(STEPS, sigma_max=20.0))


def prior(dtype: torch.dtype = torch.float64, d: int = 2) -> GaussianMixture:
    """N(0, I) in d dimensions."""
    return GaussianMixture(*(torch.tensor(v, dtype=dtype) for v in ([[0.0] * d], [1.0], [1.0])))


def peak(x: Tensor) -> Tensor:
    """(2, -1, 2, -1, ...)"""
    return x.new_tensor(PEAK).repeat(x.shape[1] // 2)


def peaked(x: Tensor, prompts: list[str] | None = None) -> Tensor:
    """-0.75 |x - peak|^2."""
    return -SHARP * (x - peak(x)).square().sum(1)


def uphill(x0: Tensor) -> Tensor:
    """The gradient of `peaked`."""
    return -2 * SHARP * (x0 - peak(x0))


def unit(x: Tensor) -> Tensor:
    return x / x.square().mean(1, keepdim=True).sqrt()


def states(controllers, schedule: list[Level], eta: float = 1.0, particles: int = 6) -> list[State]:
    """All states of a run in float64 on that many prompts of one particle, as their looks left them."""
    x = schedule[0].sigma * torch.randn(particles, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = {"x": x, "solver": ddim(eta), "generator": torch.Generator().manual_seed(2), "prompts": [""] * particles}
    return list(sample(prior(), (2,), schedule, controllers, **given))


def counted(controllers, n: int = 3, groups: int = 2, **options) -> State:
    """The finished state of a run in float32 over `vp`."""
    given = {"n": n, "prompts": [""] * groups, "generator": torch.Generator().manual_seed(3), **options}
    return list(sample(prior(torch.float32), (2,), given.pop("schedule", vp(STEPS)), controllers, **given))[-1]


def jacobian(level: Level) -> float:
    """d x0 / d x of the prior's denoiser."""
    return level.alpha / (level.alpha**2 + level.sigma**2)


def affine(level: Level, to: Level) -> tuple[float, float]:
    """x' = c x + k z for DDIM with eta = 1 over N(0, 1)."""
    ratio = level.alpha * to.sigma / (to.alpha * level.sigma)
    k = to.sigma * math.sqrt(max(0.0, 1 - ratio**2))
    kept = math.sqrt(max(0.0, to.sigma**2 - k**2)) / level.sigma
    return kept + (to.alpha - kept * level.alpha) * jacobian(level), k


def shift(state: State) -> tuple[Tensor, Tensor]:
    """How far a look has moved x0, and so the mean of x'."""
    level, to, plain = state.level, state.to, prior()(state.x, state.level)
    scale = noise_scale(level, to, state.run.eta)
    moved, still = (transition(state.x, x0, level, to, scale, None) for x0 in (state.x0, plain))
    return state.x0 - plain, moved - still


def each_step(controllers, check, eta: float = 1.0, schedules=SCHEDULES) -> None:
    """check(state, x0 unguided) at every step of every scaling; at alpha = 0 nothing has moved."""
    for schedule in schedules:
        for state in states(controllers, schedule, eta)[:-1]:
            check(state, prior()(state.x, state.level))


def is_plain(controller: Controller) -> None:
    """Nothing is changed, not a bit, and nothing is paid."""
    plain, idle = counted(()), counted(controller)
    assert torch.equal(plain.x, idle.x)
    assert (idle.run.ledger.rows, idle.run.ledger.backward_rows) == (plain.run.ledger.rows, 0)


def costs(controller: Controller, rows: int, backward: int, calls: int, **options) -> None:
    """Rows, backward rows and reward calls of one particle."""
    ledger = counted(controller, **options).run.ledger
    assert (ledger.rows, ledger.backward_rows, ledger.reward_calls) == (6 * rows, 6 * backward, 6 * calls)
