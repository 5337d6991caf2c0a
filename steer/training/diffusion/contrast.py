"""SoftREPA: the denoising error of a picture under its own caption must beat that under the others'."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map

from steer.training.diffusion.denoising import squared_error
from steer.training.diffusion.levels import ANYWHERE, Choose
from steer.training.diffusion.objective import Objective
from steer.training.loop import Logged


def contrastive(errors: Tensor, scale: float = 4.0, temperature: float = 0.07) -> Tensor:
    """Cross-entropy of each picture (row) for its own caption, with logits scale exp(-e_ij / temperature).

    The bounded exponential matters: with -e itself as the logit training is unstable.
    """
    return cross_entropy(scale * (-errors / temperature).exp(), torch.arange(len(errors), device=errors.device))


@dataclass(eq=False)
class Contrast(Objective):
    """`contrastive` over n pictures and captions at one level and one noise, + denoising times the diagonal's mean.

    arXiv 2503.08250. Captions that a batch has twice are drawn once, so none is its own negative.

    batch        n; a loss costs n^2 rows
    temperature  None: a quarter of the mean diagonal error, so that no logit saturates at 0 or at `scale`
    denoising    weight of the ordinary loss of matching pairs (0 for MMDiTs, 10 for UNets, in the authors' scripts)
    """

    batch: int = 4
    scale: float = 4.0
    temperature: float | None = None
    denoising: float = 0.0
    at: Choose = ANYWHERE

    def __post_init__(self):
        if not 2 <= self.batch <= len(set(self.task.pairs().captions)):
            raise ValueError(f"{self.batch} pairs a batch: expected at least 2, and no more than different captions.")

    def loss(self, generator: Generator) -> tuple[Tensor, Logged]:
        errors = self.errors(generator)
        own = errors.diagonal().mean()
        temperature = self.temperature or max(own.item() / 4, 1e-8)
        right = (errors.argmin(1) == torch.arange(len(errors), device=errors.device)).float().mean()
        value = contrastive(errors, self.scale, temperature) + self.denoising * own
        return value, {"retrieved": right.item(), "error": own.item()}

    def errors(self, generator: Generator) -> Tensor:
        """(n, n) mean squared error of picture i's prediction under caption j."""
        task, pairs, n = self.task, self.task.pairs(), self.batch
        index = self._distinct(generator)
        wanted, level = pairs.latents[index], self.at(task, generator)
        x = level.alpha * wanted + level.sigma * task.noise(1, generator)
        cond = task.cond([pairs.captions[k] for k in index], guided=False)
        cond = tree_map(lambda leaf: leaf.repeat(n, *[1] * (leaf.ndim - 1)), cond)
        x0 = task.x0(x.repeat_interleave(n, 0), level, cond)
        return squared_error(task, x0, wanted.repeat_interleave(n, 0), level).reshape(n, n)

    def _distinct(self, generator: Generator) -> list[int]:
        captions, chosen = self.task.pairs().captions, {}
        for k in torch.randperm(len(captions), generator=generator).tolist():
            chosen.setdefault(captions[k], k)
            if len(chosen) == self.batch:
                break
        return list(chosen.values())
