"""Initial noise improved by gradient ascent through a short deterministic sampler, before the run proper begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.utils.checkpoint import checkpoint

from steer.diffusion.control import Controller
from steer.diffusion.controllers.gradients.priors import Free, NormPrior, Shifted, Typical
from steer.diffusion.controllers.gradients.value import Reward, check_reward, finite, log_value
from steer.diffusion.solve import transition
from steer.diffusion.state import Level, State

Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class NoiseOptimisation(Controller):
    """At the first look every particle's noise z = x / sigma climbs r(g(z)) - weight penalty, and the best is kept.

    g is the deterministic sampler, `solve.transition` without noise, over `steps` transitions of the run's own schedule
    (None: all of them), through guidance and all wraps. The best of all iterates by reward goes on, the first included,
    so the reward of g never falls. What the run makes of it is g's sample if its solver is deterministic too (DDIM with
    eta = 0, Euler) and `steps` is the run's. It takes noise as x, so no run that starts from a reference.

    space         what is optimised, and its penalty: `Free(prior)` or `Shifted()`
    optimiser     of torch.optim, with its settings
    clip          largest norm of a particle's gradient; None: no limit
    enough        stop when all particles score at least this
    checkpointed  keep only the sampler's states and evaluate the network again on the way back: the memory of one
                  evaluation in place of `steps`, and each row paid for twice

    Rows: iterations x steps + 1 for each particle, the first summand twice if checkpointed. Raises ValueError for a
    reward without gradient and for steps beyond the run's; a particle whose gradient is not finite stays, with a
    warning.
    """

    reward: Reward
    iterations: int
    optimiser: Callable[[Iterable[Tensor]], Optimizer]
    space: Free | Shifted = field(default_factory=Free)
    weight: float = 0.0
    clip: float | None = None
    steps: int | None = None
    enough: float | None = None
    checkpointed: bool = True

    def __post_init__(self):
        if self.iterations < 0 or (self.steps is not None and self.steps < 1):
            raise ValueError(
                f"iterations = {self.iterations}, steps = {self.steps}: expected at least 0 iterations and 1 step."
            )

    def start(self, state: State) -> State:
        check_reward(self.reward, self)
        if (self.steps or 1) > state.steps:
            raise ValueError(f"steps = {self.steps} in a run of {state.steps} steps: expected no more than the run's.")
        return state

    def look(self, state: State) -> State:
        if state.i > 0 or self.iterations == 0:
            return state
        exact = torch.promote_types(state.x.dtype, torch.float32)
        noise = self._optimised(state, state.x.detach().to(exact) / state.level.sigma)
        with torch.no_grad():
            return replace(state, x=self._scaled(state, noise), x0=None).evaluated()

    def _optimised(self, state: State, z: Tensor) -> Tensor:
        parts = tuple(part.requires_grad_() for part in self.space.begin(z))
        optimiser = self.optimiser(parts)
        best, top = z, torch.full((len(z),), -torch.inf, dtype=z.dtype, device=z.device)
        for iteration in range(self.iterations):
            noise, score, gradients = self._climb(state, parts, z)
            better = score > top
            best = torch.where(better.reshape(-1, *[1] * (z.ndim - 1)), noise, best)
            top = torch.where(better, score, top)
            if iteration + 1 == self.iterations or (self.enough is not None and bool((top >= self.enough).all())):
                break
            for part, gradient in zip(parts, _clipped(gradients, self.clip), strict=True):
                part.grad = -gradient
            optimiser.step()
        return best

    @torch.enable_grad()
    def _climb(self, state: State, parts: Parts, z: Tensor) -> tuple[Tensor, Tensor, Parts]:
        """The noise, its reward (P n,) and the gradients of reward minus penalty by the parts."""
        ledger, before = state.run.ledger, state.run.ledger.rows
        noise = self.space.noise(parts, z)
        score = self._value(state, self._scaled(state, noise))
        ran = ledger.rows - before
        gain = score - self.weight * self.space.penalty(parts).to(score.dtype) if self.weight else score
        gradients = torch.autograd.grad(gain.sum(), parts)
        ledger.backward_rows += ran
        shared = state.alias.to(z.device)
        return noise.detach(), score.detach()[shared].to(z.dtype), tuple(finite(g, state) for g in gradients)

    def _value(self, state: State, x: Tensor) -> Tensor:
        """What is climbed, (P n,), at x of the run's first level."""
        return log_value(state, self.reward, self._sampled(state, x))

    def _scaled(self, state: State, noise: Tensor) -> Tensor:
        return (state.level.sigma * noise).to(state.x.dtype)

    def _sampled(self, state: State, x: Tensor) -> Tensor:
        """g: the deterministic sampler from the run's first level, differentiable."""
        denoise = partial(checkpoint, state.denoise, use_reentrant=False) if self.checkpointed else state.denoise
        levels = self._levels(state.run.schedule)
        for level, to in zip(levels[:-1], levels[1:], strict=True):
            x = transition(x, denoise(x, level), level, to, 0.0, None)
        return x

    def _levels(self, schedule: tuple[Level, ...]) -> list[Level]:
        last = len(schedule) - 1
        steps = self.steps or last
        return [schedule[round(k * last / steps)] for k in range(steps + 1)]


def _clipped(gradients: Parts, limit: float | None) -> Parts:
    """Each particle's gradient, all parts together, no longer than `limit`."""
    if limit is None:
        return gradients
    norm = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    scale = (limit / norm.clamp_min(limit)).reshape(-1, *[1] * (gradients[0].ndim - 1))
    return tuple(scale * g for g in gradients)


def reno(
    reward: Reward, iterations: int = 50, lr: float = 5.0, weight: float = 0.01, steps: int = 1, clip: float = 0.1
) -> NoiseOptimisation:
    """ReNO (arXiv 2406.04312): one-step generator, Nesterov ascent, prior of the noise's norm; the paper's settings."""
    nesterov = partial(torch.optim.SGD, lr=lr, momentum=0.9, nesterov=True)
    return NoiseOptimisation(
        reward, iterations, nesterov, Free(NormPrior()), weight, clip, steps, checkpointed=steps > 1
    )


def dno(
    reward: Reward, iterations: int = 100, lr: float = 0.01, weight: float = 1.0, steps: int | None = None
) -> NoiseOptimisation:
    """Direct noise optimisation (arXiv 2405.18881) of the initial noise, under its probability regulariser.

    Through all of the run's steps, checkpointed; AdamW, gradients clipped at 1.
    """
    return NoiseOptimisation(reward, iterations, partial(AdamW, lr=lr), Free(Typical()), weight, 1.0, steps)


def initno(
    reward: Reward,
    iterations: int = 50,
    lr: float = 0.01,
    weight: float = 1.0,
    steps: int = 1,
    enough: float | None = None,
) -> NoiseOptimisation:
    """Noise optimisation of the InitNO kind (arXiv 2404.04650): mean and variance of the noise, held by their KL.

    InitNO's own reward is minus its attention losses at the first step, with rounds from new noise where they stay
    large: here any reward, and n particles in place of rounds. `enough` ends it early.
    """
    return NoiseOptimisation(
        reward, iterations, partial(Adam, lr=lr), Shifted(), weight, None, steps, enough, checkpointed=steps > 1
    )
