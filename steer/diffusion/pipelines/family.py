"""What differs between families of pipelines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Given = dict[str, Any]
"""The arguments of a pipeline's `__call__`, by name, see `running`."""


class Guidance(NamedTuple):
    """Classifier-free guidance u + weight (c - u); weight 1: none.

    rescale    how far the spread of the result is pulled back to that of c (arXiv 2305.08891)
    normalize  whether the result gets the length that c has along the last axis
    """

    weight: float = 1.0
    rescale: float = 0.0
    normalize: bool = False


def own_guidance(pipe: Any, given: Given) -> Guidance:
    """The guidance of a pipeline that tells the weight of its present call."""
    if not pipe.do_classifier_free_guidance:
        return Guidance()
    return Guidance(float(pipe.guidance_scale), float(getattr(pipe, "guidance_rescale", 0.0)))


def given_guidance(pipe: Any, given: Given) -> Guidance:
    """The guidance of a pipeline that keeps the weight of its present call to itself."""
    return Guidance(max(1.0, float(given["guidance_scale"])))


def noise_shape(pipe: Any, call: dict[str, Any]) -> tuple[int, ...]:
    """(batch, channels, height, width) of latents for pictures of any size."""
    height, width = (int(call[side]) // pipe.vae_scale_factor for side in ("height", "width"))
    return call["batch_size"], call["num_channels_latents"], height, width


def even_noise_shape(pipe: Any, call: dict[str, Any]) -> tuple[int, ...]:
    """(batch, channels, height, width) of latents that the network cuts into patches of 2 x 2."""
    height, width = (2 * (int(call[side]) // (2 * pipe.vae_scale_factor)) for side in ("height", "width"))
    return call["batch_size"], call["num_channels_latents"], height, width


def postprocess(pipe: Any, decoded: Tensor, output_type: str, given: Given) -> Any:
    return pipe.image_processor.postprocess(decoded, output_type=output_type)


@dataclass(frozen=True)
class Family:
    """One pipeline class.

    pipeline     name of the class; its subclasses are driven too
    network      attribute of the pipeline that holds the denoising network
    noise_shape  (pipe, arguments of `prepare_latents`) -> shape of the initial noise
    finish       (pipe, decoded pictures in [-1, 1], output_type, given) -> images as the pipeline returns them
    reference    (pipe, arguments of `prepare_latents`, n) -> its `image` with one row a particle; None for a pipeline
                 that starts from noise alone
    guidance     (pipe, given) -> the guidance of the present call
    apart        the branches of guidance come in two network calls, the conditional one first; else in one
    time         (pipe, t) -> what the network is told for the scheduler's timestep t
    sign         the scheduler is given this times the network's output
    rowless      arguments of the network that hold no rows, though they may be as long
    axis         of the network's input, along which a mask and a masked picture may follow the particle
    unpack       (pipe, latents, given) -> latents (b, channels, height, width)
    pack         (pipe, latents (b, channels, height, width)) -> latents as the network takes them
    upcasts      a decoder in half precision that asks for it decodes in full precision
    """

    pipeline: str
    network: str
    noise_shape: Callable[[Any, dict[str, Any]], tuple[int, ...]] = noise_shape
    finish: Callable[[Any, Tensor, str, Given], Any] = postprocess
    reference: Callable[[Any, dict[str, Any], int], Tensor] | None = None
    guidance: Callable[[Any, Given], Guidance] = own_guidance
    apart: bool = False
    time: Callable[[Any, Tensor], Tensor] = lambda pipe, t: t
    sign: float = 1.0
    rowless: tuple[str, ...] = ()
    axis: int = 1
    unpack: Callable[[Any, Tensor, Given], Tensor] = lambda pipe, latents, given: latents
    pack: Callable[[Any, Tensor], Tensor] = lambda pipe, latents: latents
    upcasts: bool = False

    @property
    def input(self) -> str:
        """The network's argument for the noisy latents."""
        return "sample" if self.network == "unet" else "hidden_states"

    def calls(self, pipe: Any, given: Given) -> int:
        """How many network calls a step of the present call makes."""
        return 2 if self.apart and self.guidance(pipe, given).weight != 1 else 1


def running(pipe: Any) -> Given:
    """The names in the pipeline's `__call__` that is running, its arguments among them: some it hands on to nobody."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipe:
            return dict(frame.f_locals)
        frame = frame.f_back
    raise RuntimeError(f"{type(pipe).__name__} is not being called.")


def decoded(pipe: Any, family: Family, decode: Callable[..., Any], latents: Tensor, given: Given) -> Tensor:
    """Latents (b, ...) -> pictures (b, 3, h, w) as the decoder's `decode` gives them, in about [-1, 1]."""
    with _full_precision(pipe.vae) if family.upcasts else nullcontext():
        return decode(_to_decoder(pipe, family.unpack(pipe, latents, given)), return_dict=False)[0]


def pictures(pipe: Any, family: Family, decode: Callable[..., Any], given: Given, latents: Tensor) -> Tensor:
    """Latents (b, ...) -> pictures (b, 3, h, w), float in [0, 1], by the decoder's `decode`."""
    return (decoded(pipe, family, decode, latents, given) * 0.5 + 0.5).clamp(0, 1).float()


def encoded(pipe: Any, family: Family, images: Any) -> Tensor:
    """Pictures as the pipeline's image processor takes them -> latents (b, ...): the encoder's mode, scaled."""
    pixels = pipe.image_processor.preprocess(images).to(pipe.vae.device, pipe.vae.dtype)
    made = pipe.vae.encode(pixels)
    latents = made.latent_dist.mode() if hasattr(made, "latent_dist") else made.latent
    return family.pack(pipe, _from_encoder(pipe, latents))


def _from_encoder(pipe: Any, latents: Tensor) -> Tensor:
    """The inverse of `_to_decoder`: (latents - mean or shift_factor) * scaling_factor (/ std)."""
    config = pipe.vae.config
    mean, std = (config.get(name) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        mean, std = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        return (latents - mean) * config.scaling_factor / std
    return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor


def _to_decoder(pipe: Any, latents: Tensor) -> Tensor:
    """Latents in the scaling of the pipeline's decoder: latents (* std) / scaling_factor (+ mean or shift_factor)."""
    config, latents = pipe.vae.config, latents.to(pipe.vae.dtype)
    mean, std = (config.get(name) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        mean, std = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        return latents * std / config.scaling_factor + mean
    scaled = latents / config.scaling_factor
    return scaled if config.get("shift_factor") is None else scaled + config.shift_factor


@contextmanager
def _full_precision(vae: Any) -> Iterator[None]:
    """While active a decoder in half precision that overflows there is in full precision."""
    if not (vae.dtype == torch.float16 and vae.config.force_upcast):
        yield
        return
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(torch.float16)
