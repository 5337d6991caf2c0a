"""emoji-sd: the latent diffusion model, trained on latents that are encoded once: a coarse one first, then grown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from . import vae
from .files import write_folder
from .fit import Fit, fit, restored, seeded
from .pictures import draw_captioned
from .words import CONTEXT, tokenizer

CHANNELS = (64, 64, 128, 192)  # at 16 x 16, 8 x 8, 4 x 4 and 2 x 2
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
    """The two networks that are trained together: a text encoder, and a UNet with one level for each of `channels`."""

    def __init__(self, channels: tuple[int, ...]):
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel

        words = tokenizer()
        ends = {
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
        }
        self.text: Any = CLIPTextModel(CLIPTextConfig(vocab_size=len(words), **TEXT, **ends))
        self.text.set_attn_implementation("eager")
        self.unet = unet(channels)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x, t, self.text(tokens).last_hidden_state).sample


def unet(channels: tuple[int, ...]) -> Any:
    """A UNet2DConditionModel with self- and cross-attention at every level, 64 channels to a head.

    The pooled text joins the time embedding, and both scale and shift every block: what a name looks like is known
    everywhere, cross-attention adds the details.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    model: Any = UNet2DConditionModel(
        sample_size=2 ** len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        cross_attention_dim=TEXT["hidden_size"],
        attention_head_dim=tuple(width // 64 for width in channels),  # diffusers reads this as the number of heads
        norm_num_groups=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )
    model.set_attn_processor(AttnProcessor())  # fused attention has a slow backward on CPUs
    return model.to(memory_format=torch.channels_last)


def grown(coarse: Denoiser) -> Denoiser:
    """A denoiser with one finer level around a trained coarse one, all of whose weights it takes over.

    What the coarse one has learnt at 8 x 8 stays at 8 x 8, one level further in: it is kept, not learnt again.
    """
    inner = coarse.unet.config.block_out_channels
    with seeded(4):
        model = Denoiser((inner[0], *inner))
    deeper = {_one_level_in(name): value for name, value in coarse.state_dict().items()}
    unknown = model.load_state_dict(deeper, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"the grown denoiser has no place for {unknown} of the coarse one.")
    return model


def _one_level_in(name: str) -> str:
    """`unet.down_blocks.1.x` becomes `unet.down_blocks.2.x`; up blocks are counted from the inside already."""
    return re.sub(r"down_blocks\.(\d+)", lambda found: f"down_blocks.{int(found[1]) + 1}", name)


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


def make_loss(latents: Tensor, tokens: Tensor, noise: float, centre: tuple[float, float]):
    """|v - v_hat|^2 at the levels (alpha, noise * sigma), scaled to alpha^2 + sigma^2 = 1.

    Averaging a noisy latent over 2 x 2 cells halves its noise: with noise = 0.5 the coarse grid is trained on the
    coarse part of the very task that follows. Times are logit-normal around 1000 sigmoid(centre), which goes from the
    first centre to the second as training does: where the text alone says what goes where takes longest to learn, and
    the fine texture that tells styles apart is learnt at half the noise.
    """
    from diffusers import DDPMScheduler

    kept = DDPMScheduler(**SCHEDULE).alphas_cumprod
    empty = tokens_of([""])[0]

    def loss(model: Any, generator: Generator, progress: float) -> Tensor:
        which = torch.randint(len(latents), (BATCH,), generator=generator)
        shift = centre[0] + progress * (centre[1] - centre[0])
        t = (1000 * torch.sigmoid(torch.randn(BATCH, generator=generator) + shift)).long().clamp(max=999)
        dropped = torch.rand(BATCH, 1, generator=generator) < DROP
        level = torch.stack([kept[t].sqrt(), (1 - kept[t]).sqrt() * noise])
        alpha, sigma = F.normalize(level, dim=0)[:, :, None, None, None]
        x0, eps = latents[which], torch.randn(BATCH, *latents.shape[1:], generator=generator)
        x = (alpha * x0 + sigma * eps).contiguous(memory_format=torch.channels_last)
        v = model(x, t, torch.where(dropped, empty, tokens[which]))
        return F.mse_loss(v.float(), alpha * eps - sigma * x0)

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


def train_coarse(cache: Path, minutes: float, until: int | None = None) -> None:
    """Train (or finish training) the three inner levels, on latents averaged over 2 x 2 cells."""
    latents, tokens = bank(vae.trained(cache), cache / "latents.safetensors")
    with seeded(4):
        start = Denoiser(CHANNELS[1:])
    loss = make_loss(F.avg_pool2d(latents, 2), tokens, noise=0.5, centre=(1.8, 1.8))
    fit("emoji-sd-coarse", start, loss, Fit(minutes=minutes, lr=1.5e-3, seed=4), cache, until)


def train(cache: Path, minutes: float, until: int | None = None) -> None:
    """Grow the coarse denoiser by one level, train (or finish training) it and write the whole pipeline."""
    autoencoder = vae.trained(cache)
    latents, tokens = bank(autoencoder, cache / "latents.safetensors")
    start = grown(restored("emoji-sd-coarse", Denoiser(CHANNELS[1:]), cache))
    loss = make_loss(latents, tokens, noise=1.0, centre=(1.2, -0.3))
    model = fit("emoji-sd", start, loss, Fit(minutes=minutes, lr=1e-3, seed=5), cache, until)
    whole = pipeline(model, autoencoder).to(torch.float16)
    write_folder("emoji-sd", lambda folder: whole.save_pretrained(folder))
