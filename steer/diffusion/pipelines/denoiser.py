"""A pipeline's network with its conditioning, as a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.pipelines.family import Family, Guidance
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
    pipe: Any
    family: Family
    guidance: Guidance

    def __call__(self, x: Tensor, level: Level, cond: dict[str, Tensor]) -> Tensor:
        scheduler = self.pipe.scheduler
        t = self.family.time(self.pipe, torch.as_tensor(level.t).to(self.call.kwargs["timestep"]))
        kwargs = self.call.put(x / input_scale(scheduler, level), cond, t)
        output = self.forward(**{**kwargs, "return_dict": False})[0].to(x.dtype)
        guided = self._guided(*output.chunk(2)) if blocks_of(cond, self.call.blocks) == 2 else output
        return predicted_x0(scheduler, prediction_of(guided, x, self.family), x, level)

    def _guided(self, free: Tensor, asked: Tensor) -> Tensor:
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

        guided = free + self.guidance.weight * (asked - free)
        if self.guidance.normalize:
            return guided * (asked.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return rescale_noise_cfg(guided, asked, self.guidance.rescale) if self.guidance.rescale > 0 else guided


def prediction_of(output: Tensor, x: Tensor, family: Family) -> Tensor:
    """The scheduler's prediction from a network's output at x: its sign, and without a variance that it adds."""
    return family.sign * (output.chunk(2, dim=1)[0] if output.shape[1] == 2 * x.shape[1] else output)


def output_for(prediction: Tensor, network: Any, family: Family) -> Tensor:
    """A network's output that means this prediction: the inverse of `prediction_of`."""
    config = network.config
    adds_variance = config.get("out_channels") == 2 * config.in_channels
    return family.sign * torch.cat([prediction] * (2 if adds_variance else 1), dim=1)
