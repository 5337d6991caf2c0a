"""Stable Diffusion 1.x and 2.x, text to image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steer.diffusion.pipelines.family import Family, Given


def finish(pipe: Any, decoded: Tensor, output_type: str, given: Given) -> Any:
    """`Family.finish` of all Stable Diffusion 1.x and 2.x pipelines."""
    images, unsafe = pipe.run_safety_checker(decoded, decoded.device, decoded.dtype)
    denormalize = [True] * len(images) if unsafe is None else [not flag for flag in unsafe]
    return pipe.image_processor.postprocess(images, output_type=output_type, do_denormalize=denormalize)


STABLE_DIFFUSION = Family("StableDiffusionPipeline", "unet", finish=finish)
