"""emoji-sd: the latent diffusion model, trained coarse to fine on latents that are encoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from . import vae
from .files import write_folder
from .fit import Fit, fit, seeded
from .pictures import draw_captioned
from .words import CONTEXT, tokenizer

UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 192,
    "attention_head_dim": (1, 2, 3),  # diffusers reads this as the number of heads: 64 channels each
    "norm_num_groups": 16,
    "addition_embed_type": "text",  # the pooled text joins the time embedding, and both scale and shift every block:
    "addition_embed_type_num_heads": 4,  # what a name looks like is known everywhere, cross-attention adds the details
    "resnet_time_scale_shift": "scale_shift",
}
TEXT = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "projection_dim": 192,
    "max_position_embeddings": CONTEXT,
}
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
PICTURES, BATCH, DROP = 24_000, 48, 0.1


class Denoiser(nn.Module):
    """The two networks that are trained together."""

    def __init__(self):
        super().__init__()
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor
        from transformers import CLIPTextConfig, CLIPTextModel

        words = tokenizer()
        ends = {
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
        }
        self.text: Any = CLIPTextModel(CLIPTextConfig(vocab_size=len(words), **TEXT, **ends))
        self.unet: Any = UNet2DConditionModel(**UNET)
        self.unet.to(memory_format=torch.channels_last)
        self.unet.set_attn_processor(AttnProcessor())  # fused attention has a slow backward on CPUs
        self.text.set_attn_implementation("eager")

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x, t, self.text(tokens).last_hidden_state).sample


def tokens_of(texts: list[str]) -> Tensor:
    """Token numbers (b, CONTEXT)."""
    return tokenizer()(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def bank(autoencoder: Any, path: Path) -> tuple[Tensor, Tensor]:
    """Scaled latents (n, 4, 16, 16) and caption tokens (n, CONTEXT) of `PICTURES` training pictures, kept in `path`."""
    from safetensors.torch import load_file, save_file

    if not path.exists():
        generator, parts = torch.Generator().manual_seed(5), []
        for _ in tqdm(range(PICTURES // 240), desc="latents"):
            images, texts = draw_captioned(240, generator)
            latents = autoencoder.encode(images * 2 - 1).latent_dist.mean * autoencoder.config.scaling_factor
            parts.append((latents, tokens_of(texts)))
        save_file({"latents": torch.cat([a for a, _ in parts]), "tokens": torch.cat([b for _, b in parts])}, path)
    kept = load_file(path)
    return kept["latents"], kept["tokens"]


def share_of_fine(progress: float) -> float:
    """Which share of the batches is 16 x 16: a tenth at first, all from 70 % on."""
    return min(0.1 + 1.3 * progress, 1.0)


def draw_times(count: int, generator: Generator, fine: bool) -> Tensor:
    """Times (count,) in 0 ... 999, logit-normal: most where shapes form; later on the small, less noisy grid."""
    return (
        (1000 * torch.sigmoid(torch.randn(count, generator=generator) + (0.0 if fine else 0.7))).long().clamp(max=999)
    )


def make_loss(latents: Tensor, tokens: Tensor):
    """|v - v_hat|^2 on the 16 x 16 latents or, early on, on the same latents averaged over 2 x 2 cells.

    Averaging a noisy latent halves its noise, so at one t the small grid is trained at the level (alpha, sigma / 2):
    what it learns is the coarse part of the very task that follows.
    """
    from diffusers import DDPMScheduler

    kept = DDPMScheduler(**SCHEDULE).alphas_cumprod
    empty = tokens_of([""])[0]

    def loss(model: Any, generator: Generator, progress: float) -> Tensor:
        fine = float(torch.rand((), generator=generator)) < share_of_fine(progress)
        which = torch.randint(len(latents), (BATCH,), generator=generator)
        t = draw_times(BATCH, generator, fine)
        dropped = torch.rand(BATCH, 1, generator=generator) < DROP
        x0 = latents[which] if fine else F.avg_pool2d(latents[which], 2)
        level = torch.stack([kept[t].sqrt(), (1 - kept[t]).sqrt() * (1.0 if fine else 0.5)])
        alpha, sigma = F.normalize(level, dim=0)[:, :, None, None, None]
        noise = torch.randn(x0.shape, generator=generator)
        x = (alpha * x0 + sigma * noise).contiguous(memory_format=torch.channels_last)
        v = model(x, t, torch.where(dropped, empty, tokens[which]))
        return F.mse_loss(v.float(), alpha * noise - sigma * x0)

    return loss


def pipeline(model: Denoiser, autoencoder: Any):
    """The stock StableDiffusionPipeline around the trained parts."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=model.text,
        tokenizer=tokenizer(),
        unet=model.unet,
        scheduler=DDPMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def train(cache: Path, minutes: float, until: int | None = None) -> None:
    """Train (or finish training) the denoiser on the finished autoencoder's latents and write the whole pipeline."""
    autoencoder = vae.trained(cache)
    latents, tokens = bank(autoencoder, cache / "latents.safetensors")
    config = Fit(minutes=minutes, lr=1.5e-3, ema=0.998, seed=4)
    with seeded(4):
        start = Denoiser()
    model = fit("emoji-sd", start, make_loss(latents, tokens), config, cache, until)
    whole = pipeline(model, autoencoder).to(torch.float16)
    write_folder("emoji-sd", lambda folder: whole.save_pretrained(folder))
