"""Lumina Image 2: time runs from noise to picture, so does the velocity, and guidance is a second network call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steer.diffusion.pipelines.family import Family, Given, Guidance, even_noise_shape


def _guidance(pipe: Any, given: Given) -> Guidance:
    if given["cfg_trunc_ratio"] < 1:
        raise ValueError(
            f"cfg_trunc_ratio = {given['cfg_trunc_ratio']}: guidance that ends before the run is not supported; "
            "expected 1."
        )
    return Guidance(max(1.0, float(given["guidance_scale"])), normalize=given["cfg_normalization"])


def _time(pipe: Any, t: Tensor) -> Tensor:
    return 1 - t / pipe.scheduler.config.num_train_timesteps


LUMINA_2 = Family(
    "Lumina2Pipeline", "transformer", even_noise_shape, guidance=_guidance, apart=True, time=_time, sign=-1.0
)
