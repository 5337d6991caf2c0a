"""Stable Diffusion XL, text to image and image to image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steer.diffusion.pipelines.family import Family, Given
from steer.diffusion.pipelines.img2img import is_latent, noise_shape
from steer.diffusion.pipelines.references import index, rows_of


def finish(pipe: Any, decoded: Tensor, output_type: str, given: Given) -> Any:
    """`Family.finish` of all Stable Diffusion XL pipelines."""
    marked = decoded if pipe.watermark is None else pipe.watermark.apply_watermark(decoded)
    return pipe.image_processor.postprocess(marked, output_type=output_type)


def _reference(pipe: Any, call: dict[str, Any], n: int) -> Tensor:
    """As in `img2img`; it is the pipeline itself that encodes, asked for its references without noise."""
    image, rows = call["image"], rows_of(call)
    take = index(len(image), rows, n)
    if not is_latent(image) and not isinstance(call.get("generator"), list):
        alone = {**call, "batch_size": len(image), "num_images_per_prompt": 1, "add_noise": False}
        image = type(pipe).prepare_latents(pipe, **alone)
    return image[take.to(image.device)]


STABLE_DIFFUSION_XL = Family("StableDiffusionXLPipeline", "unet", finish=finish, upcasts=True)
STABLE_DIFFUSION_XL_IMG2IMG = Family(
    "StableDiffusionXLImg2ImgPipeline", "unet", noise_shape, finish, _reference, upcasts=True
)
