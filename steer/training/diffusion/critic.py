"""A value network: the reward that a run will end with, from where it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, mse_loss
from torch.utils._pytree import tree_leaves

from steer.diffusion.state import Level
from steer.training.diffusion.task import Cond

CELLS = 4  # to a side, of the grid that latents are averaged over


def features(x: Tensor, level: Level, cond: Cond) -> Tensor:
    """(b, d): the sample on a coarse grid, the conditional branch averaged over its tokens, alpha and sigma."""
    coarse = adaptive_avg_pool2d(x, min(CELLS, x.shape[-1])) if x.ndim == 4 else x
    told = [leaf[:, -1].reshape(len(x), -1, leaf.shape[-1]).mean(1) for leaf in tree_leaves(cond)]
    where = x.new_tensor([level.alpha, level.sigma]).expand(len(x), 2)
    return torch.cat([part.detach().flatten(1).float() for part in (coarse, *told, where)], 1)


class Critic:
    """V(x_t, t, c), fitted to final rewards by AdamW: DPOK's baseline (arXiv 2305.16381).

    width    of its one hidden layer
    updates  for each batch of runs, of `batch` states each
    """

    def __init__(self, inputs: int, width: int = 64, lr: float = 1e-4, updates: int = 5, batch: int = 256):
        self.updates, self.batch = updates, batch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, 1))
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=lr)

    @torch.no_grad()
    def __call__(self, seen: Tensor) -> Tensor:
        """Values (b,) of features (b, d)."""
        return self.net(seen.cpu()).squeeze(1)

    @torch.enable_grad()
    def learn(self, seen: Tensor, rewards: Tensor, generator: Generator) -> None:
        """Fit to features (m, d) and their final rewards (m,)."""
        for _ in range(self.updates):
            rows = torch.randint(len(seen), (min(self.batch, len(seen)),), generator=generator)
            self.optimiser.zero_grad()
            mse_loss(self.net(seen[rows].cpu()).squeeze(1), rewards[rows].cpu().float()).backward()
            self.optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
