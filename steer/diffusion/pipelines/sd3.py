"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any

from steer.diffusion.pipelines.family import Family, Given, Guidance, own_guidance


def _guidance(pipe: Any, given: Given) -> Guidance:
    if given["skip_guidance_layers"] is not None:
        raise ValueError(
            f"skip_guidance_layers = {given['skip_guidance_layers']} under a controller that asks or wraps the "
            "denoiser, which has no such branch; leave them out, or use a search alone."
        )
    return own_guidance(pipe, given)


STABLE_DIFFUSION_3 = Family("StableDiffusion3Pipeline", "transformer", guidance=_guidance)
