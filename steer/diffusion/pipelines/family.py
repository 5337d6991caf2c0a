"""What differs between families of pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Family:
    """One pipeline class.

    pipeline     name of the class; its subclasses are driven too
    network      attribute of the pipeline that holds the denoising network
    input        the network's argument for the noisy latents
    noise_shape  (pipe, arguments of `prepare_latents`) -> shape of the initial noise
    finish       (pipe, decoded pictures in [-1, 1], output_type) -> images as the pipeline returns them
    reference    (pipe, arguments of `prepare_latents`, n) -> its `image` with one row a particle; None for a pipeline
                 that starts from noise alone
    """

    pipeline: str
    network: str
    input: str
    noise_shape: Callable[[Any, dict[str, Any]], tuple[int, ...]]
    finish: Callable[[Any, Tensor, str], Any]
    reference: Callable[[Any, dict[str, Any], int], Tensor] | None = None


def to_decoder(pipe: Any, latents: Tensor) -> Tensor:
    """Latents in the scaling of the pipeline's decoder: latents / scaling_factor (+ shift_factor)."""
    config = pipe.vae.config
    scaled = latents.to(pipe.vae.dtype) / config.scaling_factor
    return scaled if config.get("shift_factor") is None else scaled + config.shift_factor


def pictures(pipe: Any, decode: Callable[..., Any], latents: Tensor) -> Tensor:
    """Latents (b, ...) -> pictures (b, 3, h, w), float in [0, 1], by the decoder's `decode`."""
    decoded = decode(to_decoder(pipe, latents), return_dict=False)[0]
    return (decoded * 0.5 + 0.5).clamp(0, 1).float()


class Guidance(NamedTuple):
    """Classifier-free guidance u + weight (c - u), its spread then pulled back to that of c by `rescale` (0: not)."""

    weight: float
    rescale: float


def guidance(pipe: Any) -> Guidance:
    """The guidance of a pipeline's present call; weight 1 without."""
    if not pipe.do_classifier_free_guidance:
        return Guidance(1.0, 0.0)
    return Guidance(float(pipe.guidance_scale), float(getattr(pipe, "guidance_rescale", 0.0)))
