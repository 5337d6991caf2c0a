"""Cheap looks: a decoder, or a reward, that costs a fraction serves every look before the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.rewards.adapt import adapt
from steer.rewards.base import Reward, Wrapper

Decoder = Callable[[Tensor], Tensor]
"""Latents (b, c, h, w), as a pipeline's network sees them -> pictures (b, 3, H, W), float in [0, 1]."""

BATCH = 16  # pictures of the full decoder at a time


@dataclass(frozen=True)
class VaeDecoder:
    """The decoder of a diffusers autoencoder, such as AutoencoderTiny (taesd): 1.2 million parameters, not 50."""

    vae: Any = field(repr=False)
    name: str = field(init=False)

    def __post_init__(self):
        if not hasattr(self.vae, "decode") or not hasattr(self.vae, "config"):
            raise ValueError(f"{self.vae!r} is no diffusers autoencoder; expected AutoencoderTiny, AutoencoderKL, ...")
        object.__setattr__(self, "name", getattr(self.vae.config, "_name_or_path", "") or type(self.vae).__name__)

    def __call__(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        scaled = latents.to(self.vae.dtype) / config.scaling_factor + (config.get("shift_factor") or 0)
        return (self.vae.decode(scaled, return_dict=False)[0] * 0.5 + 0.5).clamp(0, 1).float()


@dataclass(frozen=True)
class LinearDecoder:
    """Every latent pixel and its neighbours -> its patch of f x f RGB pixels, by one matrix; differentiable.

        patch = W^T [z of (2 reach + 1)^2 pixels, 1],    W (c (2 reach + 1)^2 + 1, 3 f^2)

    factor   f, picture pixels a latent pixel
    reach    how many latent pixels it sees to each side
    error    root mean square error on the pictures that it was fitted to, in [0, 1]
    """

    factor: int
    reach: int
    error: float
    weight: Tensor = field(repr=False, compare=False)

    @classmethod
    @torch.no_grad()
    def fit(cls, vae: Any, latents: Tensor, reach: int = 1) -> LinearDecoder:
        """Least squares on pairs (latents, their pictures by the autoencoder `vae` of diffusers).

        latents (b, c, h, w), as a pipeline's network sees them: of a few dozen pictures, such as
        `Steered(pipe)(prompt, n=32).candidates.latents[0]`. Costs b decodes, once. Raises ValueError for fewer latent
        pixels than there are unknowns.
        """
        features = _features(latents.double(), reach)
        pixels, unknowns = features.shape[0] * features.shape[1], features.shape[2]
        if pixels < unknowns:
            raise ValueError(
                f"{len(latents)} latents have {pixels} pixels for {unknowns} unknowns: expected at least as many; "
                "give more pictures, or a smaller reach."
            )
        decode = VaeDecoder(vae)
        pictures = torch.cat([decode(part) for part in latents.split(BATCH)]).double()
        factor = pictures.shape[-1] // latents.shape[-1]
        patches = F.pixel_unshuffle(pictures, factor).flatten(2).mT
        weight = torch.linalg.lstsq(features.flatten(0, 1), patches.flatten(0, 1)).solution
        error = float((features @ weight - patches).square().mean().sqrt())
        return cls(factor, reach, error, weight.float())

    def __call__(self, latents: Tensor) -> Tensor:
        patches = _features(latents.float(), self.reach) @ self.weight.to(latents.device)
        return F.pixel_shuffle(patches.mT.unflatten(2, latents.shape[-2:]), self.factor).clamp(0, 1)


@dataclass(frozen=True)
class OnLatents(Wrapper):
    """r(decoder(latents)): a reward on pictures as one on latents, for which no search decodes anything."""

    reward: Reward
    decoder: Decoder
    needs_decode = False
    medium = "latents"

    def __post_init__(self):
        if not self.reward.needs_decode:
            raise ValueError(f"{self.reward!r} looks at latents already and needs no decoder.")

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.reward(self.decoder(images), prompts)


@dataclass(frozen=True)
class Looking(Wrapper):
    """A reward whose `preview` serves a search before its last look; see `looking`."""

    reward: Reward
    preview: Reward

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.reward(images, prompts)


def looking(reward: Any, cheap: Decoder | Reward) -> Looking:
    """Look cheaply, choose exactly: looks before the end use `cheap`, the last scores the full decoder's pictures.

    reward  any that `adapt` takes
    cheap   a decoder, for this reward; or a reward of its own, such as a `StitchedClip`, which needs none

    A run of n particles then decodes n pictures, at whatever number of looks; a gradient follows `cheap` alone. Put it
    last: `looking(a + b, cheap)`; a sum or multiple of it looks at full pictures throughout. Raises ValueError for a
    decoder with a reward on latents.

    >>> decoder = LinearDecoder.fit(pipe.vae, latents)
    >>> Steered(pipe, code(looking(ClipScore(), decoder), block=1))("a red apple", n=8)
    """
    exact = adapt(reward)
    return Looking(exact, cheap if isinstance(cheap, Reward) else OnLatents(exact, cheap))


def patches(latents: Tensor, reach: int, stride: int = 1) -> Tensor:
    """(b, h w / stride^2, c (stride + 2 reach)^2): cells with `reach` more to each side, zeros beyond the border."""
    return F.unfold(latents, stride + 2 * reach, padding=reach, stride=stride).mT


def _features(latents: Tensor, reach: int) -> Tensor:
    """(b, h w, c (2 reach + 1)^2 + 1): each latent pixel with its neighbours, and a one."""
    seen = patches(latents, reach)
    return torch.cat([seen, torch.ones_like(seen[..., :1])], -1)
