"""From a scheduler to a level, and from its model's prediction to x0 and back: in the scheduler's own arithmetic."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.denoise import from_x0, to_x0
from steer.diffusion.pipelines.schedulers import kind_of, looks
from steer.diffusion.state import Level


def level_at(scheduler: Any, t: Tensor, progress: float = 0.0) -> Level:
    """The level at the scheduler's present step, whose timestep is t. Changes nothing in the scheduler."""
    if kind_of(scheduler).scaling == "vp":
        return _vp(scheduler.alphas_cumprod[int(t)], t, progress)
    return _from_sigma(scheduler, _index(scheduler, t), t, progress)


def level_after(scheduler: Any, t: Tensor) -> Level:
    """The level that a step from timestep t of a scheduler with sigmas leads to."""
    return _from_sigma(scheduler, _index(scheduler, t) + 1)


def schedule(scheduler: Any, skipped: int = 0) -> list[Level]:
    """All levels of a run after `set_timesteps`, from noise to clean, less the `skipped` timesteps at its start."""
    calls = [call + skipped for call in looks(scheduler, skipped)]
    at = [(scheduler.timesteps[call], place / len(calls)) for place, call in enumerate(calls)]
    if kind_of(scheduler).scaling == "vp":
        clean = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0))
        return [level_at(scheduler, t, u) for t, u in at] + [_vp(clean, None, 1.0)]
    levels = [_from_sigma(scheduler, call, t, u) for call, (t, u) in zip(calls, at)]
    return [*levels, _from_sigma(scheduler, len(scheduler.sigmas) - 1, None, 1.0)]


def input_scale(scheduler: Any, level: Level) -> float:
    """What x is divided by before the network sees it: sqrt(1 + sigma^2) in the variance-exploding scaling, else 1."""
    return (1 + level.sigma**2) ** 0.5 if kind_of(scheduler).scaling == "ve" else 1.0


def predicted_x0(scheduler: Any, prediction: Tensor, x: Tensor, level: Level) -> Tensor:
    """x0 from the model's prediction at x, equal to the scheduler's own estimate, clipping and thresholding included.

    epsilon and sample as in `to_x0`. v: alpha x - sigma v; in the (1, sigma) scaling, where the model sees
    x / sqrt(1 + sigma^2), it is x / (1 + sigma^2) - v sigma / sqrt(1 + sigma^2). flow: x - sigma v.
    Raises ValueError for an unknown prediction type, and for epsilon at alpha = 0.
    """
    kind = prediction_type(scheduler)
    if kind == "flow_prediction":
        x0 = x - level.sigma * prediction
    elif kind != "v_prediction":
        x0 = to_x0(prediction, x, level, kind)
    elif kind_of(scheduler).scaling == "ve":
        sigma = torch.tensor(level.sigma, dtype=torch.float32)  # coefficients round as the scheduler's own do
        x0 = prediction * float(-sigma / (sigma**2 + 1) ** 0.5) + x / float(sigma**2 + 1)
    else:
        x0 = level.alpha * x - level.sigma * prediction
    return _limited(scheduler, x0)


def prediction_for(scheduler: Any, x0: Tensor, x: Tensor, level: Level) -> Tensor:
    """The model prediction that means this x0: the inverse of `predicted_x0`, for sigma > 0."""
    kind, scale = prediction_type(scheduler), input_scale(scheduler, level)
    if kind == "v_prediction":
        return from_x0(x0, x / scale, Level(level.alpha / scale, level.sigma / scale), kind)
    return from_x0(x0, x, level, kind)


def prediction_type(scheduler: Any) -> str:
    """What the scheduler takes its model to predict: one of `denoise.KINDS`."""
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    return "sample" if kind == "original_sample" else kind


def _limited(scheduler: Any, x0: Tensor) -> Tensor:
    if _set(scheduler, "thresholding"):
        return scheduler._threshold_sample(x0)
    if _set(scheduler, "clip_sample"):
        return x0.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
    return x0


def limits_x0(scheduler: Any) -> bool:
    """Whether the scheduler clips or thresholds x0: then its step does not follow an edit of x0 all the way."""
    return _set(scheduler, "thresholding") or _set(scheduler, "clip_sample")


def _set(scheduler: Any, option: str) -> bool:
    """Whether the class has an option and it is on: `from_config` keeps foreign options that the class ignores."""
    return option in inspect.signature(type(scheduler).__init__).parameters and bool(scheduler.config[option])


def _vp(alpha_squared: Tensor, t: Tensor | None, progress: float) -> Level:
    return Level(float(alpha_squared**0.5), float((1 - alpha_squared) ** 0.5), t, progress)


def _from_sigma(scheduler: Any, index: int, t: Tensor | None = None, progress: float = 0.0) -> Level:
    sigma = scheduler.sigmas[index]
    scaling = kind_of(scheduler).scaling
    if scaling == "ratio":
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
        return Level(float(alpha), float(sigma), t, progress)
    return Level(float(1 - sigma) if scaling == "flow" else 1.0, float(sigma), t, progress)


def _index(scheduler: Any, t: Tensor) -> int:
    if scheduler.step_index is not None:
        return scheduler.step_index
    return scheduler.index_for_timestep(t) if scheduler.begin_index is None else scheduler.begin_index
