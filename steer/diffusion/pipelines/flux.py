"""FLUX.1: latents packed into tokens, distilled guidance as an embedding, true guidance as a second network call.

FLUX.1 Fill puts the masked picture and the mask beside each token's features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steer.diffusion.pipelines.family import Family, Given, Guidance, even_noise_shape
from steer.diffusion.pipelines.references import index, rows_of


def _guidance(pipe: Any, given: Given) -> Guidance:
    embeds = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
    negative = given["negative_prompt"] is not None or all(given[name] is not None for name in embeds)
    return Guidance(float(given["true_cfg_scale"])) if negative and given["true_cfg_scale"] > 1 else Guidance()


def _unpack(pipe: Any, latents: Tensor, given: Given) -> Tensor:
    return pipe._unpack_latents(latents, given["height"], given["width"], pipe.vae_scale_factor)


def _pack(pipe: Any, latents: Tensor) -> Tensor:
    return pipe._pack_latents(latents, *latents.shape)


def _reference(pipe: Any, call: dict[str, Any], n: int) -> Tensor:
    """The picture of every row, encoded here, once a picture, as the plain call does before it draws the noise.

    Of a list of generators the first of each image samples the encoder's posterior, as in the plain call.
    """
    if call.get("latents") is not None:
        return call["image"]
    image, generator = call["image"].to(device=call["device"], dtype=call["dtype"]), call["generator"]
    take = index(len(image), rows_of(call), n)
    if image.shape[1] != pipe.latent_channels:
        image = pipe._encode_vae_image(image, generator[::n] if isinstance(generator, list) else generator)
    return image[take.to(image.device)]


FLUX = Family(
    "FluxPipeline",
    "transformer",
    even_noise_shape,
    guidance=_guidance,
    apart=True,
    time=lambda pipe, t: t / 1000,
    rowless=("txt_ids", "img_ids"),
    unpack=_unpack,
    pack=_pack,
)
FLUX_FILL = Family(
    "FluxFillPipeline",
    "transformer",
    even_noise_shape,
    reference=_reference,
    guidance=lambda pipe, given: Guidance(),
    time=lambda pipe, t: t / 1000,
    rowless=("txt_ids", "img_ids"),
    axis=2,
    unpack=_unpack,
    pack=_pack,
)
