"""A random Stable Diffusion pipeline, small enough for two cores, made without a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from steer.diffusion.control import Controller

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tokenizer() -> CLIPTokenizer:
    pieces = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=16)


def unet(channels: tuple[int, int] = (32, 64), **config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
        **config,
    )


def heed_the_prompt(model: UNet2DConditionModel, strength: float = 8.0) -> UNet2DConditionModel:
    """Makes cross-attention loud: in a random network the prompt would hardly be heard."""
    for name, weights in model.named_parameters():
        if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
            weights.data *= strength
    return model


def vae() -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(
        block_out_channels=(16, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=16, **blocks
    )


def pipeline(scheduler) -> StableDiffusionPipeline:
    """A StableDiffusionPipeline with the same random weights every time; 8x8 latents, 16x16 pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = tokenizer()
        ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": 1}
        size = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
        text = CLIPTextModel(CLIPTextConfig(vocab_size=len(words), max_position_embeddings=16, **size, **ends))
        parts = {"unet": heed_the_prompt(unet()), "vae": vae(), "text_encoder": text.eval(), "tokenizer": words}
    pipe = StableDiffusionPipeline(
        **parts,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Watch(Controller):
    """Notes every state that it sees."""

    states: list = field(default_factory=list)

    def look(self, state):
        self.states.append(state)
        return state
