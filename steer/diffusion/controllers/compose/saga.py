"""SAGA: the signal part of a distribution over latents, learnt once at one step, shared by all images of a prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.controllers.compose.objectives import Loss
from steer.diffusion.controllers.compose.reading import Reader
from steer.diffusion.controllers.gradients.value import OwnNoise, finite
from steer.diffusion.controllers.when import live
from steer.diffusion.state import State


@dataclass(frozen=True)
class SignalAligned(Controller):
    """At one step, x of every particle becomes m + sigma eps: m learnt for the prompt, eps the particle's first noise.

    m starts as alpha times the mean of each channel of x0, the clean estimate of the step before, and goes down the
    gradient of E_e[loss(maps(rescale(m) + sigma e))], e ~ N(0, I), by `iterations` steps of SGD over `noises` draws:

        rescale(m) = m min(1, std(alpha x0) / std(m))     over all numbers of one latent; differentiated, and used at
                                                          the end too: without it pictures saturate

    at        progress of the run, 0 to 1, at whose next step it acts; the second step at the earliest
    shared    one m for a prompt, from its particle 0: results do not depend on n, but for rounding. Else one of each
              particle's own
    rescaled  False: the ablation

    Rows: iterations x noises for each distribution, forward and backward, of the conditional branch. Works on runs that
    start from noise. With iterations = 0 it does nothing, bit for bit. Raises ValueError for a run without a second
    step, and as `Reader` does.
    """

    reader: Reader
    loss: Loss
    at: float = 0.2
    iterations: int = 50
    noises: int = 10
    lr: float = 20.0
    momentum: float = 0.4
    shared: bool = True
    rescaled: bool = True

    def __post_init__(self):
        if not 0 <= self.at < 1 or self.iterations < 0 or self.noises < 1 or self.lr <= 0 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"{self!r}: expected 0 <= at < 1, iterations >= 0, noises >= 1, lr > 0 and 0 <= momentum < 1."
            )

    @property
    def evaluates(self) -> bool:  # type: ignore[override]
        return self.iterations > 0

    def start(self, state: State) -> State:
        self.reader.check(state)
        if state.steps < 2:
            raise ValueError(f"SAGA acts at the second step or later, and this run has {state.steps}.")
        return self._keep(state, noise=state.x / state.level.sigma) if self.iterations else state

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        return self.reader.wrap(denoiser) if self.iterations else denoiser

    @torch.no_grad()
    def look(self, state: State) -> State:
        step = max(1, min(state.steps - 1, round(self.at * state.steps)))
        if state.finished or not self.iterations or state.i not in (step - 1, step):
            return state
        if state.i == step - 1:
            state = state.evaluated()
            return self._keep(state, x0=state.x0)
        own, level = self._own, state.level
        signal = self._learnt(state, level.alpha * state.grouped(state.memory[f"{own}x0"]).float())
        noise = state.grouped(state.memory[f"{own}noise"])
        x = (signal + level.sigma * noise).flatten(0, 1).to(state.x)
        kept = {name: value for name, value in state.memory.items() if not name.startswith(own)}
        return replace(state, x=x, x0=None, memory=kept, label=state.alias)

    def _learnt(self, state: State, clean: Tensor) -> Tensor:
        """(P, k, ...) the signal, k = 1 if shared; clean (P, n, ...) is alpha x0."""
        clean = clean[:, :1] if self.shared else clean
        limit = _spread(clean)
        places = tuple(range(3, clean.ndim)) or (2,)  # packed latents are (tokens, channels)
        m = clean.mean(places, keepdim=True).expand_as(clean).clone()
        optimiser = torch.optim.SGD([m], lr=self.lr, momentum=self.momentum)
        own = OwnNoise(state)
        for _ in range(self.iterations):
            m.grad = self._gradient(state, m, limit, own)
            optimiser.step()
        return self._rescale(m, limit)

    def _gradient(self, state: State, m: Tensor, limit: Tensor, own: OwnNoise) -> Tensor:
        """(P, k, ...) of the mean loss over fresh noises, a call of the network for as many as there are particles."""
        total, ledger, left = torch.zeros_like(m), state.run.ledger, self.noises
        while left > 0:
            fresh = min(left, state.n) if self.shared else 1
            noise, label = self._noise(state, m, fresh, own)
            before = ledger.rows
            with torch.enable_grad():
                leaf = m.detach().requires_grad_()
                x = (self._rescale(leaf, limit) + state.level.sigma * noise).flatten(0, 1).to(state.x)
                value = self.reader.values(state, self.reader.maps(state, x, label), self.loss)
                ran = ledger.rows - before
                counts = state.grouped(value)[:, :fresh] if self.shared else state.grouped(value)[live(state)]
                (gradient,) = torch.autograd.grad(counts.sum() / self.noises, leaf)
            ledger.backward_rows += ran
            total, left = total + gradient, left - fresh
        every = finite(total.expand(-1, state.n, *total.shape[2:]).flatten(0, 1), state)
        return state.grouped(every)[:, : m.shape[1]]

    def _noise(self, state: State, m: Tensor, fresh: int, own: OwnNoise) -> tuple[Tensor, Tensor]:
        """(P, n, ...) noise of which the first `fresh` are new and the rest repeat the first; labels to match."""
        if not self.shared:
            return state.grouped(own.like(state.x)).to(m), state.alias
        shape, slots = (len(m), *m.shape[2:]), torch.arange(state.n)
        drawn = [torch.randn(shape, generator=own.generators[0]) for _ in range(fresh)]
        source = torch.where(slots < fresh, slots, 0)
        label = source + state.n * torch.arange(len(m))[:, None]
        return torch.stack(drawn, 1)[:, source].to(m), label.flatten()

    def _rescale(self, m: Tensor, limit: Tensor) -> Tensor:
        return m * (limit / _spread(m)).clamp(max=1) if self.rescaled else m

    @property
    def _own(self) -> str:
        return f"{id(self)}."

    def _keep(self, state: State, **values: Tensor) -> State:
        return replace(state, memory={**state.memory, **{self._own + name: kept for name, kept in values.items()}})


def _spread(latents: Tensor) -> Tensor:
    """Standard deviation over all numbers of one latent, (P, k, 1, ...)."""
    return latents.std(tuple(range(2, latents.ndim)), keepdim=True)
