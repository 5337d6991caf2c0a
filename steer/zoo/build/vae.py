"""emoji-sd/vae: a stock AutoencoderKL, 64x64x3 -> 16x16x4, about one million parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..data import compose, glyphs, split
from .fit import Fit, fit, restored, seeded
from .pictures import draw_plain, randint

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "sample_size": 64,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "act_fn": "silu",
}
BATCH, CROPS = 16, (32, 32, 48)
KL_WEIGHT = 1e-6


def build() -> Any:
    """A new autoencoder with fixed initial weights."""
    from diffusers import AutoencoderKL

    with seeded(0):
        return AutoencoderKL(**CONFIG)


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences along x and y."""
    return images[..., :, 1:] - images[..., :, :-1], images[..., 1:, :] - images[..., :-1, :]


def distance(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| + |edges| on three scales: L1 keeps colours, the edge term keeps contours, the pyramid keeps shapes."""
    total = torch.zeros(())
    for _ in range(3):
        total = total + (a - b).abs().mean()
        total = total + sum((x - y).abs().mean() for x, y in zip(edges(a), edges(b), strict=True))
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total


def crops(generator: Generator) -> Tensor:
    """A batch in [-1, 1]: random 32- and 48-px crops; one batch in six whole pictures, at 64 px or shrunk to 32."""
    whole = randint(6, generator) == 0
    size = 64 if whole else CROPS[randint(len(CROPS), generator)]
    pieces = []
    for picture in draw_plain(BATCH * 32 * 32 // size**2, generator):
        top, left = randint(65 - size, generator), randint(65 - size, generator)
        pieces.append(picture[:, top : top + size, left : left + size])
    images = torch.stack(pieces).mul(2).sub(1)
    return F.avg_pool2d(images, 2) if whole and randint(2, generator) else images


def loss(vae: Any, generator: Generator, progress: float) -> Tensor:
    """distance(decode(z), x) + 1e-6 KL, z drawn from the posterior.

    One batch in four asks it of z and x both shrunk by two (EQ-VAE, arXiv 2502.09509): then latents of a small picture
    are small latents of the picture, which is what coarse-to-fine training of the denoiser needs.
    """
    images = crops(generator)
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    latents = posterior.mean + posterior.std * noise
    if randint(4, generator) == 0:
        images, latents = F.avg_pool2d(images, 2), F.avg_pool2d(latents, 2)
    return distance(vae.decode(latents).sample.float(), images) + KL_WEIGHT * posterior.kl().float().mean()


@torch.no_grad()
def standardise(vae: Any) -> None:
    """Give every latent channel mean 0 and deviation 1 on the training pictures; pictures do not change.

    z' = (z - m) / s is folded into the two 1 x 1 convolutions around the latents (the second half of `quant_conv` makes
    the log-variance, which loses 2 log s), so that scaling_factor is 1 and any pipeline agrees.
    """
    pictures, _, _ = glyphs()
    images = compose(pictures[split()]).mul(2).sub(1)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
    out.weight *= std[None, :, None, None]
    into.weight[:4] /= std[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - mean) / std
    into.bias[4:] -= 2 * std.log()
    vae.register_to_config(scaling_factor=1.0)


def train(cache: Path, minutes: float) -> None:
    """Train (or finish training) the autoencoder; it is shipped as a part of emoji-sd."""
    fit("vae", build(), loss, Fit(minutes=minutes, lr=2e-3, weight_decay=1e-4, ema=0.997), cache)


def trained(cache: Path) -> Any:
    """The autoencoder of the finished stage "vae", standardised. Raises ValueError when that has not been run."""
    vae = restored("vae", build(), cache)
    standardise(vae)
    return vae
