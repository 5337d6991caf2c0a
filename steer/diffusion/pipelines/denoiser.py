"""A pipeline's network with its conditioning, as a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from steer.diffusion.pipelines.family import Guidance
from steer.diffusion.pipelines.levels import input_scale, predicted_x0
from steer.diffusion.pipelines.network import Call, blocks_of
from steer.diffusion.state import Level


@dataclass(frozen=True)
class NetworkDenoiser:
    """(x (b, ...), level, cond) -> x0 (b, ...): one network call on all branches of classifier-free guidance.

    The branches are combined as the pipeline does, then x0 is found in the scheduler's arithmetic.
    cond as `Call.cond` gives it: {argument: (b, blocks, ...)}. With one block of it, cond[:, :1] or cond[:, 1:], the
    network sees that branch alone, and its x0 comes back unguided.
    """

    forward: Callable[..., Any]
    call: Call
    scheduler: Any
    guidance: Guidance

    def __call__(self, x: Tensor, level: Level, cond: dict[str, Tensor]) -> Tensor:
        kwargs = self.call.put(x / input_scale(self.scheduler, level), cond)
        output = self.forward(**{**kwargs, "timestep": level.t, "return_dict": False})[0]
        prediction = self._guided(*output.chunk(2)) if blocks_of(cond, self.call.blocks) == 2 else output
        return predicted_x0(self.scheduler, prediction, x, level)

    def _guided(self, free: Tensor, asked: Tensor) -> Tensor:
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

        guided = free + self.guidance.weight * (asked - free)
        return rescale_noise_cfg(guided, asked, self.guidance.rescale) if self.guidance.rescale > 0 else guided
