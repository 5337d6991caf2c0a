"""emoji-flow: a tiny Stable Diffusion 3, an MMDiT trained by rectified flow on the latents of emoji-sd.

Its positions are those of one fixed grid of patches, so there is no coarse grid to begin on, as emoji-sd has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import sd, vae
from .files import write_folder
from .fit import Fit, fit, restored, seeded
from .sd import DROP, bank, tokens_of
from .words import CONTEXT, tokenizer

WIDTH = 192
TEXT = sd.TEXT
TEXT_2 = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "projection_dim": 32,
    "max_position_embeddings": CONTEXT,
}
JOINT = TEXT["hidden_size"] + TEXT_2["hidden_size"]
TRANSFORMER = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": WIDTH // 32,
    "caption_projection_dim": WIDTH,
    "joint_attention_dim": JOINT,
    "pooled_projection_dim": JOINT,
    "pos_embed_max_size": 8,
    "qk_norm": "rms_norm",
}
BATCH = 64
BLANKS, FULL = 256, 1 / 32  # zero rows that stand for the absent T5 in a stock call; the share of batches with so many


class Denoiser(nn.Module):
    """The three networks that are trained together."""

    def __init__(self):
        super().__init__()
        from diffusers import SD3Transformer2DModel

        self.text, self.text_2 = _text(TEXT), _text(TEXT_2)
        self.transformer: Any = SD3Transformer2DModel(**TRANSFORMER)
        begin_as_identity(self.transformer)

    def words(self, tokens: Tensor, blanks: int) -> tuple[Tensor, Tensor]:
        """What the stock pipeline makes of a prompt: rows (b, CONTEXT + blanks, JOINT) and pooled text (b, JOINT).

        The last layers but one of both encoders side by side, then `blanks` rows of zeros where T5 is absent.
        """
        both = [text(tokens, output_hidden_states=True) for text in (self.text, self.text_2)]
        rows = torch.cat([one.hidden_states[-2] for one in both], -1)
        return F.pad(rows, (0, 0, 0, blanks)), torch.cat([one.text_embeds for one in both], -1)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, blanks: int) -> Tensor:
        rows, pooled = self.words(tokens, blanks)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has a slow backward on CPUs: a quarter of the step
            return self.transformer(x, encoder_hidden_states=rows, pooled_projections=pooled, timestep=t).sample


def _text(size: dict[str, int]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    words = tokenizer()
    ends = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    return CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=len(words), **size, **ends))


@torch.no_grad()
def begin_with_words(model: Denoiser, teacher: sd.Denoiser) -> None:
    """Take over the trained text encoder of emoji-sd: what a name means need not be learnt twice."""
    model.text.text_model.load_state_dict(teacher.text.state_dict())
    nn.init.eye_(model.text.text_projection.weight)


@torch.no_grad()
def begin_as_identity(transformer: Any) -> None:
    """Zero all modulations and the output layer: every block begins as the identity (DiT, arXiv 2212.09748)."""
    from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero

    norms = (AdaLayerNormContinuous, AdaLayerNormZero)
    layers: list[Any] = [module.linear for module in transformer.modules() if isinstance(module, norms)]
    for layer in (*layers, transformer.proj_out):
        layer.weight.zero_()
        layer.bias.zero_()


def make_loss(latents: Tensor, tokens: Tensor):
    """|v - v_hat|^2 with v = eps - x0 at x = (1 - s) x0 + s eps, s logit-normal (SD3, arXiv 2403.03206, section 3.1).

    The median of s begins at 0.73, where the text alone says what goes where, and falls to 0.5, as emoji-sd's does.
    A stock call without T5 adds 256 rows of zeros to the text. Most batches have one, so that a call with
    `max_sequence_length=1` is as good as the default, at a quarter of the cost.
    """
    empty = tokens_of([""])[0]

    def loss(model: Any, generator: Generator, progress: float) -> Tensor:
        blanks = BLANKS if float(torch.rand((), generator=generator)) < FULL else 1
        which = torch.randint(len(latents), (BATCH,), generator=generator)
        sigma = torch.sigmoid(torch.randn(BATCH, generator=generator) + 1 - progress)
        dropped = torch.rand(BATCH, 1, generator=generator) < DROP
        x0, s = latents[which], sigma[:, None, None, None]
        noise = torch.randn(x0.shape, generator=generator)
        v = model((1 - s) * x0 + s * noise, 1000 * sigma, torch.where(dropped, empty, tokens[which]), blanks)
        return F.mse_loss(v.float(), noise - x0)

    return loss


def pipeline(model: Denoiser, autoencoder: Any):
    """The stock StableDiffusion3Pipeline, without T5, around the trained parts."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    autoencoder.register_to_config(shift_factor=0.0)  # this pipeline adds it without asking whether there is one
    return StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder,
        text_encoder=model.text,
        tokenizer=tokenizer(),
        text_encoder_2=model.text_2,
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def train(cache: Path, minutes: float, until: int | None = None) -> None:
    """Train (or finish training) the denoiser on the finished autoencoder's latents and write the whole pipeline."""
    autoencoder = vae.trained(cache)
    latents, tokens = bank(autoencoder, cache / "latents.safetensors")
    config = Fit(minutes=minutes, lr=1e-3, ema=0.999, seed=6)
    with seeded(6):
        start = Denoiser()
    begin_with_words(start, restored("emoji-sd", sd.Denoiser(sd.CHANNELS), cache))
    model = fit("emoji-flow", start, make_loss(latents, tokens), config, cache, until)
    whole = pipeline(model, autoencoder).to(torch.float16)
    write_folder("emoji-flow", lambda folder: whole.save_pretrained(folder))
