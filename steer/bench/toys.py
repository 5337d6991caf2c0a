"""Exact toy posteriors as worlds of the suite: the denoiser, the judge and the divergence are formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from steer.bench.cell import Cell
from steer.bench.problem import Problem
from steer.diffusion.denoise import GaussianMixture
from steer.diffusion.schedule import flow, vp
from steer.diffusion.state import Level
from steer.rewards import Reward
from steer.rewards.border import unknown

SAMPLES = 32


@dataclass(frozen=True)
class Corner(Reward):
    """exp(-|x - (7, 7)|): the reward of CoDe's case study I (arXiv 2502.00968)."""

    needs_decode = False
    differentiable = True

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.exp(-(images - 7).norm(dim=-1))


@dataclass(frozen=True)
class Quadratic(Reward):
    """-0.75 |x - 2|^2, which tilts N(0, 1) to N(1.2, 0.4)."""

    needs_decode = False
    differentiable = True

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return -0.75 * (images - 2).square().sum(-1)


@dataclass(frozen=True)
class Toy:
    """A Gaussian mixture under a schedule; a prompt stands for nothing but one more independent search.

    Its judge is the log-density of the prior, its divergence KL(found || prior), its diversity the mean distance
    between the samples of a prompt.
    """

    prior: GaussianMixture
    schedule: Callable[[int], list[Level]]
    rewards: dict[str, Reward]
    chunk = 10**6
    guided = False

    def prompts(self, cell: Cell) -> list[str]:
        return [""] * cell.prompts

    def images(self, cell: Cell) -> int:
        return SAMPLES * cell.images

    def reward(self, name: str) -> Reward:
        """The reward of a name. Raises ValueError for one that this toy does not have."""
        if name not in self.rewards:
            raise unknown("reward of a toy", name, self.rewards)
        return self.rewards[name]

    def problem(self, prompts: Sequence[str], cell: Cell, generator: Generator) -> Problem:
        return Problem(self.prior, self.prior.means.shape[1:], self.schedule(cell.steps), tuple(prompts), generator)

    def judged(self, x: Tensor, cell: Cell) -> dict[str, Any]:
        """Of samples (prompts, images, d): judge and diversity a prompt, divergence a number."""
        return {
            "judge": self.prior.log_prob(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1).tolist(),
            "diversity": (torch.cdist(x, x).sum((1, 2)) / (x.shape[1] * (x.shape[1] - 1))).tolist(),
            "divergence": divergence(x.flatten(0, 1), self.prior.log_prob)[0],
        }


def divergence(x: Tensor, log_prior: Callable[[Tensor], Tensor], k: int = 4) -> tuple[float, float]:
    """KL(samples x (s, d) || prior) and its standard error: -H(q) - E_q log p.

    The entropy H is Kozachenko and Leonenko's k-nearest-neighbour estimate, which needs no bins, no kernel width and no
    model of q; the cross term is exact, as the toy's density is known. In d <= 2 with thousands of samples its bias,
    about k / s, is under its standard error, taken from the spread of the samples' own terms.
    """
    from scipy import spatial, special

    points = x.double().numpy()
    s, d = points.shape
    radius = torch.from_numpy(spatial.cKDTree(points).query(points, k + 1)[0][:, -1])
    ball = d / 2 * math.log(math.pi) - special.gammaln(d / 2 + 1)
    log_q = special.digamma(k) - special.digamma(s) - ball - d * radius.log()
    terms = log_q - log_prior(x).double()
    return float(terms.mean()), float(terms.std() / math.sqrt(s))


def _modes() -> GaussianMixture:
    return GaussianMixture(torch.tensor([[2.0, 8.0], [5.0, 2.0], [8.0, 8.0]]), torch.ones(3), torch.full((3,), 1 / 3))


def _normal() -> GaussianMixture:
    return GaussianMixture(torch.zeros(1, 1), torch.ones(1), torch.ones(1))


TOYS = {
    "toy-modes": Toy(_modes(), vp, {"corner": Corner()}),
    "toy-modes-flow": Toy(_modes(), flow, {"corner": Corner()}),
    "toy-normal": Toy(_normal(), vp, {"quadratic": Quadratic()}),
    "toy-normal-flow": Toy(_normal(), flow, {"quadratic": Quadratic()}),
}
