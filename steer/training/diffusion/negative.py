"""Learning from good and bad samples by the forward process alone: DiffusionNFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from steer.training.diffusion.advantages import Advantage, over_group
from steer.training.diffusion.denoising import noised, squared_error
from steer.training.diffusion.onpolicy import OnPolicy, Samples
from steer.training.handle import Weights
from steer.training.loop import Logged

LIMIT = 5.0  # of advantages
BY_GROUP = over_group("batch", LIMIT)


def optimality(advantages: Tensor) -> Tensor:
    """q = clip(A / (2 * 5) + 1 / 2, 0, 1): the chance that a sample is a good one; 1/2 gives no push."""
    return (advantages / (2 * LIMIT) + 0.5).clamp(0, 1)


def mirrored(x0: Tensor, old: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    """The policy of good samples, (1 - b) old + b new, and that of bad ones, (1 + b) old - b new.

    Mixing is linear, and what a network predicts is linear in x0, so it is the same in either.
    """
    return (1 - mix) * old + mix * x0, (1 + mix) * old - mix * x0


@dataclass(eq=False)
class NegativeAware(OnPolicy):
    """mean q |v_plus - u|^2 + (1 - q) |v_minus - u|^2 at samples noised anew, with v_plus and v_minus as in `mirrored`.

    arXiv 2509.16117 (DiffusionNFT), as in UniWorld-V2. No likelihoods, any sampler, no guidance. Its optimum is
    v_old + (2 / b) E[q (u - v_old) | x_t].

    mix         b; 1 / b acts as the strength of a guidance
    normalised  the authors' code: 5 / b times |x0_plus - x0|^2 / sg(mean |x0_plus - x0|), in x0, likewise minus; False:
                the paper's, in the model's own prediction
    levels      of the sampler's schedule that a loss noises to, each with all samples
    kl_weight   of |prediction - prediction of the model before training|^2
    decay       of the policy that draws: after each batch of runs old <- d old + (1 - d) new, d = min(slope k, limit)
    """

    mix: float = 1.0
    normalised: bool = True
    levels: int = 2
    kl_weight: float = 1e-4
    slope: float = 1e-3
    limit: float = 0.5
    advantage: Advantage = BY_GROUP
    eta: float = 0.0
    guided: bool = False
    steps: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.mix <= 1 or not 1 <= self.levels <= self.task.steps:
            raise ValueError(
                f"mix {self.mix}, {self.levels} levels of {self.task.steps}: expected 0 < mix <= 1, and at least one "
                "level and no more than there are."
            )
        self.old: Weights = self.handle.weights()

    def draw(self, generator: Generator) -> Samples:
        decay = min(self.slope * (self.used // self.updates), self.limit)
        new = self.handle.weights()
        self.old = {name: decay * self.old[name].to(new[name]) + (1 - decay) * new[name] for name in new}
        with self.handle.using(self.old):
            return super().draw(generator)

    def learn(self, samples: Samples, generator: Generator) -> tuple[Tensor, Logged]:
        steps = torch.randperm(self.task.steps, generator=generator)[: self.levels].tolist()
        losses, drifts = zip(*[self._at_level(samples, i, generator) for i in steps])
        loss, drift = torch.stack(losses).mean(), torch.stack(drifts).mean()
        return loss + self.kl_weight * drift, {"kl": drift.item()}

    def _at_level(self, samples: Samples, i: int, generator: Generator) -> tuple[Tensor, Tensor]:
        task, level, wanted, prompts = self.task, self.task.schedule[i], samples.final, self.texts(samples.prompts)
        x = noised(task, wanted, level, generator)
        with torch.no_grad(), self.handle.using(self.old):
            old = task.x0(x, level, task.cond(prompts, self.guided))
        reference = self.reference(x, level, prompts, self.guided)
        x0 = task.x0(x, level, task.cond(prompts, self.guided), self.checkpointed)
        q = optimality(samples.advantages).to(x0)
        plus, minus = (self._error(made, wanted, level) for made in mirrored(x0, old, self.mix))
        return (q * plus + (1 - q) * minus).mean(), squared_error(task, x0, reference, level).mean()

    def _error(self, made: Tensor, wanted: Tensor, level: Any) -> Tensor:
        if not self.normalised:
            return squared_error(self.task, made, wanted, level)
        apart = (made - wanted).float().flatten(1)
        return LIMIT / self.mix * apart.square().mean(1) / apart.detach().abs().mean(1).clamp_min(1e-5)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "old": self.old}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.old = state["old"]
