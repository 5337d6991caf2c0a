"""Demon: the noises of a step are not chosen among but combined."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steer.diffusion.control import Controller
from steer.diffusion.controllers.search import Reward, Search
from steer.diffusion.controllers.when import Every
from steer.diffusion.solve import noise_scale, transition
from steer.diffusion.state import Look, State


@dataclass(frozen=True)
class Demon(Controller):
    """Tanh Demon (arXiv 2410.05760): all particles continue one, moved by a mix of their noises z_k.

        z* = sqrt(d) sum_k b_k z_k / |sum_k b_k z_k|,    b_k = tanh((r_k - mean r) / std r)

    z* stays on the sphere where noise lives, so that nothing leaves the model's manifold. r_k is the reward of the
    fresh clean estimate of child k, in place of the paper's run of an ODE to the end from every child: n + 1 rows a
    step, 1 + (T - 1) (n + 1) in all. Equal scores keep child 0. Raises ValueError where the transition's noise is not
    known: a solver other than DDIM / Euler with eta > 0.
    """

    reward: Reward
    needs_noise = True

    @property
    def search(self) -> Search:
        return Search(self.reward, Every(1), common_start=True)

    def start(self, state: State) -> State:
        return self.search.start(state) if state.n > 1 else state

    def look(self, state: State) -> State:
        if state.finished:
            return self.search.look(state)
        if state.n == 1:
            return state
        if state.run.eta is None:
            raise ValueError(
                "Demon combines the noises of a step, but this solver's are not known: use DDIM or Euler with eta > 0, "
                "or a search, such as code(reward, block=1)."
            )
        if "demon" in state.memory:
            state = self._combined(state)
        scale = noise_scale(state.level, state.to, state.run.eta)
        mean = transition(state.x, state.x0, state.level, state.to, scale, None)
        return replace(state, memory={**state.memory, "demon": mean})

    def _combined(self, state: State) -> State:
        mean, scale = state.memory["demon"], noise_scale(state.run.schedule[state.i - 1], state.level, state.run.eta)
        scores = self.search.scores(state)
        z = state.grouped((state.x - mean) / scale)
        mixed = _mixed(scores.to(z), z.flatten(2)).reshape(z[:, :1].shape).expand_as(z).flatten(0, 1)
        looked = replace(state, x=mean + scale * mixed, x0=None, label=state.label // state.n * state.n)
        own = torch.arange(state.n).expand_as(scores)
        return replace(looked.evaluated(), trace=(*state.trace, Look(state.i, scores, own)))


def _mixed(scores: Tensor, z: Tensor) -> Tensor:
    """(P, d) the combination of noises z (P, n, d), as long as noise is; child 0 where nothing sets them apart."""
    seen = torch.isfinite(scores)
    count = seen.sum(-1, keepdim=True).clamp_min(1)
    apart = torch.where(seen, scores, 0)
    apart = torch.where(seen, apart - apart.sum(-1, keepdim=True) / count, 0)
    spread = (apart.square().sum(-1, keepdim=True) / count).sqrt()
    b = torch.where(spread > 0, torch.tanh(apart / spread), 0)
    mixed = (b[..., None] * z).sum(1)
    length = mixed.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, math.sqrt(z.shape[-1]) * mixed / length, z[:, 0])
