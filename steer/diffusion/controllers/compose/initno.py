"""Initial noise whose words are attended to: the noise optimisation of `steer.gradients`, on attention losses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from steer.diffusion.control import Denoiser
from steer.diffusion.controllers.compose.objectives import Loss
from steer.diffusion.controllers.compose.reading import Reader
from steer.diffusion.controllers.gradients.noise import NoiseOptimisation
from steer.diffusion.state import State


@dataclass(frozen=True)
class Attended:
    """What is climbed: minus a loss of the maps at the run's first level."""

    reader: Reader
    loss: Loss


@dataclass(frozen=True)
class AttentionNoise(NoiseOptimisation):
    """`NoiseOptimisation` of minus an attention loss, an `Attended`, at the run's first level: `steps` is not used.

    Rows: `iterations` for each particle, forward and backward, of the conditional branch, and the run's first
    evaluation once more.
    """

    reward: Attended

    def start(self, state: State) -> State:
        self.reward.reader.check(state)
        return state

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        return self.reward.reader.wrap(denoiser) if self.iterations else denoiser

    def _value(self, state: State, x: Tensor) -> Tensor:
        return -self.reward.reader.values(state, self.reward.reader.maps(state, x), self.reward.loss)
