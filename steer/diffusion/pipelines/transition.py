"""The stochastic transition in place of the step of a scheduler that draws no noise of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steer.diffusion.pipelines.levels import level_after, level_at, predicted_x0
from steer.diffusion.solve import noise_scale, transition


def stochastic_step(
    scheduler: Any,
    eta: float,
    generator: torch.Generator | list[torch.Generator] | None,
    prediction: Tensor,
    t: Tensor,
    x: Tensor,
    return_dict: bool = True,
) -> Any:
    """x' = alpha' x0 + sqrt(sigma'^2 - (eta k)^2) eps + eta k z, see `steer.diffusion.solve`; counts as one step.

    The noise z comes from `generator`, as `randn_tensor` of diffusers draws it. Returns what `scheduler.step` would.
    """
    from diffusers.schedulers.scheduling_utils import SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor

    level, to = level_at(scheduler, t), level_after(scheduler, t)
    scale = noise_scale(level, to, eta)
    noise = randn_tensor(prediction.shape, generator, x.device, x.dtype) if scale > 0 else None
    moved = transition(x, predicted_x0(scheduler, prediction, x, level), level, to, scale, noise)
    if scheduler.step_index is None:
        scheduler._init_step_index(t)
    scheduler._step_index += 1
    return SchedulerOutput(prev_sample=moved) if return_dict else (moved,)
