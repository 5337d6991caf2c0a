"""PixArt-Sigma, and its way of rendering in the nearest of the sizes that it was trained on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steer.diffusion.pipelines.family import Family, Given, given_guidance, postprocess


def finish(pipe: Any, decoded: Tensor, output_type: str, given: Given) -> Any:
    """`Family.finish` of pipelines that render in the nearest size they know and cut the picture to the size asked."""
    if given["use_resolution_binning"]:
        decoded = pipe.image_processor.resize_and_crop_tensor(decoded, given["orig_width"], given["orig_height"])
    return postprocess(pipe, decoded, output_type, given)


PIXART_SIGMA = Family("PixArtSigmaPipeline", "transformer", finish=finish, guidance=given_guidance)
