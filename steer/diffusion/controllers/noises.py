"""Search over initial noises: whole runs again and again, each round drawn near the best noise so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from steer.diffusion.control import Controller
from steer.diffusion.controllers.search import Reward, Search
from steer.diffusion.controllers.when import Every
from steer.diffusion.ledger import Ledger
from steer.diffusion.state import State
from steer.pick import stay

Run = Callable[[Sequence[Controller]], State]


@dataclass(frozen=True)
class Near(Controller):
    """Start the particles of every prompt from  z' = (z + radius u) / sqrt(1 + radius^2),  u their own fresh noise.

    So z' has the law of z and u, whatever the scaling of the driver. Without a pivot z, (P, ...), they start from u.
    `state.memory` keeps both, "fresh" and "noise", each (P n, ...).
    """

    pivot: Tensor | None = field(default=None, repr=False)
    radius: float = 1.0

    def start(self, state: State) -> State:
        fresh = noise = state.x
        if self.pivot is not None:
            mixed = self.pivot.repeat_interleave(state.n, 0) + self.radius * fresh
            noise = mixed / math.sqrt(1 + self.radius**2)
        return replace(state, x=noise, memory={**state.memory, "fresh": fresh, "noise": noise})


@dataclass(frozen=True)
class FoundNoise:
    """What a noise search found.

    noise    (P, ...) the best initial noise of every prompt: give it to the pipeline as `latents`
    x        (P, ...) the sample that it became, and rewards (P,) its score
    history  (rounds, P) the best score after each round
    ledger   the cost of all rounds together
    """

    noise: Tensor = field(repr=False)
    x: Tensor = field(repr=False)
    rewards: Tensor
    history: Tensor = field(repr=False)
    ledger: Ledger


def noise_search(run: Run, reward: Reward, rounds: int = 4, radius: float | None = None) -> FoundNoise:
    """Search over initial noises (arXiv 2501.09732): `rounds` runs of n particles each, and the best one of all.

    run     controllers -> the finished State of one run under them, from a generator that goes on from run to run
    radius  None: random search, every round from fresh noises; r > 0: zero-order search, every later round from
            neighbours (z + r u) / sqrt(1 + r^2) of the best noise z so far, which stay standard normal

    Rows: rounds x those of one run. It serves deterministic solvers; under a stochastic one the noise found is but a
    part of what made the sample. With a loop of our own, or a pipeline:

    >>> noise_search(lambda c: finished(sample(denoiser, shape, levels, c, n=8, solver=ddim(0), generator=g)), reward)
    >>> def run(controllers):
    ...     with attach(pipe, controllers, n=8) as session:
    ...         pipe("a red apple", num_images_per_prompt=8, generator=g)
    ...     return session.state

    Raises ValueError for rounds < 1, radius <= 0, and a run that starts from the same noises twice.
    """
    if rounds < 1 or not (radius is None or radius > 0):
        raise ValueError(f"rounds = {rounds}, radius = {radius}: expected rounds >= 1, and radius > 0 or None.")
    scored = Search(reward, Every(None), pick=stay)
    state = run([Near(), scored])
    best = _best(state)
    for _ in range(rounds - 1):
        before = state.memory["fresh"]
        state = run([Near() if radius is None else Near(best.noise, radius), scored])
        if torch.equal(before, state.memory["fresh"]):
            raise ValueError("the run began with the same noises twice: make its generator once, outside of `run`.")
        best = _better(best, _best(state))
    return best


def _best(state: State) -> FoundNoise:
    """The best particle of every prompt of a finished run."""
    scores, noise = state.trace[-1].scores, state.memory["noise"]
    rows = scores.argmax(-1) + state.n * torch.arange(len(scores))
    rewards = scores.amax(-1)
    x = state.x[rows.to(state.x.device)]
    return FoundNoise(noise[rows.to(noise.device)], x, rewards, rewards[None], state.run.ledger)


def _better(old: FoundNoise, new: FoundNoise) -> FoundNoise:
    """The better of two for every prompt, at the cost of both."""

    def keep(one: Tensor, other: Tensor) -> Tensor:
        wins = (new.rewards > old.rewards).to(one.device)
        return torch.where(wins.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    rewards = keep(new.rewards, old.rewards)
    ledger = Ledger(*(getattr(old.ledger, f.name) + getattr(new.ledger, f.name) for f in fields(Ledger)))
    history = torch.cat([old.history, rewards[None]])
    return FoundNoise(keep(new.noise, old.noise), keep(new.x, old.x), rewards, history, ledger)
