"""Stable Diffusion 1.x and 2.x, image to image: every run starts from a noised reference, part of the way down."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steer.diffusion.pipelines.family import Family
from steer.diffusion.pipelines.sd import finish


def _rows(call: dict[str, Any]) -> int:
    return call["batch_size"] * call["num_images_per_prompt"]


def _is_latent(image: Tensor) -> bool:
    return image.shape[1] == 4  # the pipeline's own test


def _noise_shape(pipe: Any, call: dict[str, Any]) -> tuple[int, ...]:
    scale = 1 if _is_latent(call["image"]) else pipe.vae_scale_factor
    height, width = (side // scale for side in call["image"].shape[-2:])
    return _rows(call), pipe.vae.config.latent_channels, height, width


def _reference(pipe: Any, call: dict[str, Any], n: int) -> Tensor:
    """The reference of every row: all n particles of an image start from the one that the plain call gives the image.

    One generator samples the encoder's posterior here, before any noise and once a reference, as in the plain call: the
    particles share it. With a list of generators each particle is a plain call of its own, and the pipeline encodes.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

    given, generator, images = call["image"], call.get("generator"), _rows(call) // n
    if images % len(given):
        raise ValueError(
            f"image holds {len(given)} references for {images} images; expected one, or one for each image (or a "
            "number that divides theirs: the pipeline takes the references in turn)."
        )
    image = given.to(device=call["device"], dtype=call["dtype"])
    if not _is_latent(image) and not isinstance(generator, list):
        image = pipe.vae.config.scaling_factor * retrieve_latents(pipe.vae.encode(image), generator=generator)
    # an index keeps the encoder's memory layout, as the plain call does: the network's last bits depend on it
    return image[(torch.arange(images * n) // n % len(given)).to(image.device)]


STABLE_DIFFUSION_IMG2IMG = Family(
    "StableDiffusionImg2ImgPipeline", "unet", "sample", _noise_shape, finish, reference=_reference
)
