"""Inpainting by Stable Diffusion 1.x, 2.x and XL: the particles of an image share its picture and its mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steer.diffusion.pipelines import sd, sdxl
from steer.diffusion.pipelines.family import Family
from steer.diffusion.pipelines.img2img import is_latent
from steer.diffusion.pipelines.references import index, rows_of


def _reference(pipe: Any, call: dict[str, Any], n: int) -> Tensor:
    """The picture of every row, encoded here, once a picture, wherever the pipeline would encode it.

    Of a list of generators the first of each image samples the encoder's posterior, as in the plain call.
    """
    image, generator = call["image"].to(device=call["device"], dtype=call["dtype"]), call.get("generator")
    take = index(len(image), rows_of(call), n)
    needed = call["return_image_latents"] or (call["latents"] is None and not call["is_strength_max"])
    if not is_latent(image):
        if not needed:
            return call["image"]
        image = pipe._encode_vae_image(image, generator[::n] if isinstance(generator, list) else generator)
    return image[take.to(image.device)]


STABLE_DIFFUSION_INPAINT = Family("StableDiffusionInpaintPipeline", "unet", finish=sd.finish, reference=_reference)
STABLE_DIFFUSION_XL_INPAINT = Family(
    "StableDiffusionXLInpaintPipeline", "unet", finish=sdxl.finish, reference=_reference, upcasts=True
)
