"""FLUX.1: latents packed into tokens, distilled guidance as an embedding, true guidance as a second network call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steer.diffusion.pipelines.family import Family, Given, Guidance, even_noise_shape


def _guidance(pipe: Any, given: Given) -> Guidance:
    embeds = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
    negative = given["negative_prompt"] is not None or all(given[name] is not None for name in embeds)
    return Guidance(float(given["true_cfg_scale"])) if negative and given["true_cfg_scale"] > 1 else Guidance()


def _unpack(pipe: Any, latents: Tensor, given: Given) -> Tensor:
    return pipe._unpack_latents(latents, given["height"], given["width"], pipe.vae_scale_factor)


def _pack(pipe: Any, latents: Tensor) -> Tensor:
    return pipe._pack_latents(latents, *latents.shape)


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
