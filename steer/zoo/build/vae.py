"""emoji-sd/vae: a stock AutoencoderKL, 64x64x3 -> 16x16x4, about one million parameters."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..data import compose, glyphs, split
from .fit import Fit, fit
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


def build() -> nn.Module:
    """A new autoencoder with fixed initial weights."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(**CONFIG)


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences along x and y."""
    return images[..., :, 1:] - images[..., :, :-1], images[..., 1:, :] - images[..., :-1, :]


def distance(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| + |edges| on three scales: L1 keeps colours, the edge term keeps contours, the pyramid keeps shapes."""
    total = torch.zeros(())
    for scale in range(3):
        total = total + (a - b).abs().mean()
        total = total + sum((x - y).abs().mean() for x, y in zip(edges(a), edges(b), strict=True))
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total


def crops(generator: Generator) -> Tensor:
    """A batch of random crops in [-1, 1]: 32 px most of the time, 48 px, and one batch in eight whole pictures."""
    whole = randint(8, generator) == 0
    size = 64 if whole else CROPS[randint(len(CROPS), generator)]
    pieces = []
    for _ in range(BATCH * 32 * 32 // size**2):
        top, left = randint(65 - size, generator), randint(65 - size, generator)
        pieces.append(draw_plain(generator)[:, top : top + size, left : left + size])
    return torch.stack(pieces).mul(2).sub(1)


def loss(vae: nn.Module, generator: Generator, progress: float) -> Tensor:
    """distance(decode(z), x) + 1e-6 KL, z drawn from the posterior."""
    images = crops(generator)
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    return distance(decoded, images) + KL_WEIGHT * posterior.kl().mean()


@torch.no_grad()
def reconstruct(vae: nn.Module, images: Tensor) -> Tensor:
    """Pictures (b, 3, 64, 64) in [0, 1] through the posterior mean and back."""
    wide = images.mul(2).sub(1)
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample for part in wide.split(64)]
    return torch.cat(parts).add(1).div(2).clamp(0, 1).contiguous()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, -10 log10 mean (a - b)^2 of each picture, averaged over pictures."""
    return (-10 * (a - b).square().flatten(1).mean(1).clamp(min=1e-10).log10()).mean()


@torch.no_grad()
def set_scaling(vae: nn.Module) -> None:
    """Write scaling_factor = 1 / std of the latents of the training pictures on white into the config."""
    pictures, _, _ = glyphs()
    images = compose(pictures[split()]).mul(2).sub(1)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))


def train(cache: Path, minutes: float = 15.0) -> nn.Module:
    """Train (or finish training) the autoencoder; its config carries the measured scaling factor."""
    vae = fit("vae", build(), loss, Fit(minutes=minutes, lr=2e-3, weight_decay=1e-4, ema=0.997), cache)
    set_scaling(vae)
    return vae
