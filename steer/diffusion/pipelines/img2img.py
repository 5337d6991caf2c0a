"""Stable Diffusion 1.x and 2.x, image to image: every run starts from a noised reference, part of the way down."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steer.diffusion.pipelines.family import Family
from steer.diffusion.pipelines.references import index, rows_of
from steer.diffusion.pipelines.sd import finish


def is_latent(image: Tensor) -> bool:
    return image.shape[1] == 4  # the pipelines' own test


def noise_shape(pipe: Any, call: dict[str, Any]) -> tuple[int, ...]:
    """(batch, channels, height, width) of the reference's latents."""
    scale = 1 if is_latent(call["image"]) else pipe.vae_scale_factor
    height, width = (side // scale for side in call["image"].shape[-2:])
    return rows_of(call), pipe.vae.config.latent_channels, height, width


def _reference(pipe: Any, call: dict[str, Any], n: int) -> Tensor:
    """The reference of every row: all n particles of an image start from the one that the plain call gives the image.

    One generator samples the encoder's posterior here, before any noise and once a reference, as in the plain call: the
    particles share it. With a list of generators each particle is a plain call of its own, and the pipeline encodes.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

    generator = call.get("generator")
    take = index(len(call["image"]), rows_of(call), n)
    image = call["image"].to(device=call["device"], dtype=call["dtype"])
    if not is_latent(image) and not isinstance(generator, list):
        image = pipe.vae.config.scaling_factor * retrieve_latents(pipe.vae.encode(image), generator=generator)
    # an index keeps the encoder's memory layout, as the plain call does: the network's last bits depend on it
    return image[take.to(image.device)]


STABLE_DIFFUSION_IMG2IMG = Family("StableDiffusionImg2ImgPipeline", "unet", noise_shape, finish, _reference)
