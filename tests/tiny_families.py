"""Random pipelines of the other families, as small as their classes allow, made without a network.

All make 16x16 pictures from 8x8 latents, unless said; `SIZE` holds what a call needs to ask for that.
"""

from __future__ import annotations

from typing import Any

import diffusers
import tiny
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

SIZE: dict[str, dict[str, Any]] = {
    "sdxl": {},
    "sd3": {"max_sequence_length": 8},
    "flux": {"height": 16, "width": 16, "max_sequence_length": 12},
    "pixart": {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 12},
    "sana": {
        "height": 32,  # the least that it takes; its decoder makes 4x4 pixels of a latent
        "width": 32,
        "use_resolution_binning": False,
        "max_sequence_length": 12,
        "complex_human_instruction": [],
    },
    "lumina2": {"height": 64, "width": 64, "system_prompt": "", "max_sequence_length": 24},  # it takes 8x8 for granted
}
WORDS = len(tiny.tokenizer())


def clip(projected: bool = True) -> Any:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1, "pad_token_id": 1}
    config = CLIPTextConfig(vocab_size=WORDS, max_position_embeddings=16, projection_dim=16, **size, **ends)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5() -> T5EncoderModel:
    size = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=WORDS, **size)).eval()


def gemma() -> Gemma2Model:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Gemma2Model(Gemma2Config(vocab_size=WORDS, **size, **heads)).eval()


def vae(**config: Any) -> diffusers.AutoencoderKL:
    made = tiny.vae()
    made.register_to_config(**{"force_upcast": False, "shift_factor": 0.1, **config})
    return made


def made(build: Any, scheduler: Any) -> Any:
    """A pipeline with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = build(scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unet_xl(**config: Any) -> diffusers.UNet2DConditionModel:
    return tiny.unet(
        (16, 32),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
        use_linear_projection=True,
        **config,
    )


def sdxl_parts(**config: Any) -> dict[str, Any]:
    return {
        "vae": vae(shift_factor=None),
        "text_encoder": clip(projected=False),
        "text_encoder_2": clip(),
        "tokenizer": tiny.tokenizer(),
        "tokenizer_2": tiny.tokenizer(),
        "unet": tiny.heed_the_prompt(unet_xl(**config)),
    }


def sdxl(scheduler: Any) -> diffusers.StableDiffusionXLPipeline:
    return diffusers.StableDiffusionXLPipeline(**sdxl_parts(), scheduler=scheduler, add_watermarker=False)


def sdxl_img2img(scheduler: Any) -> diffusers.StableDiffusionXLImg2ImgPipeline:
    return diffusers.StableDiffusionXLImg2ImgPipeline(**sdxl_parts(), scheduler=scheduler, add_watermarker=False)


def sdxl_inpaint(scheduler: Any, **config: Any) -> diffusers.StableDiffusionXLInpaintPipeline:
    parts = sdxl_parts(**config)
    return diffusers.StableDiffusionXLInpaintPipeline(**parts, scheduler=scheduler, add_watermarker=False)


def sd_inpaint(scheduler: Any) -> diffusers.StableDiffusionInpaintPipeline:
    parts = tiny.pipeline(scheduler).components
    return diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


def sdxl_inpaint_9(scheduler: Any) -> diffusers.StableDiffusionXLInpaintPipeline:
    """With mask and masked picture among the network's 9 input channels."""
    return sdxl_inpaint(scheduler, in_channels=9)


def sd3(scheduler: Any, num_layers: int = 1, **config: Any) -> diffusers.StableDiffusion3Pipeline:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=num_layers,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        **config,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=loud(transformer),
        scheduler=scheduler,
        vae=vae(),
        text_encoder=clip(),
        tokenizer=tiny.tokenizer(),
        text_encoder_2=clip(),
        tokenizer_2=tiny.tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def sd35(scheduler: Any) -> diffusers.StableDiffusion3Pipeline:
    return sd3(scheduler, dual_attention_layers=(0,), qk_norm="rms_norm")


def flux_parts(decoder: Any = None, **config: Any) -> dict[str, Any]:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
        **{"in_channels": 16, **config},
    )
    return {
        "vae": vae() if decoder is None else decoder,
        "text_encoder": clip(projected=False),
        "tokenizer": tiny.tokenizer(),
        "text_encoder_2": t5(),
        "tokenizer_2": tiny.tokenizer(),
        "transformer": loud(transformer),
    }


def flux(scheduler: Any) -> diffusers.FluxPipeline:
    return diffusers.FluxPipeline(scheduler=scheduler, **flux_parts())


def flux_fill(scheduler: Any) -> diffusers.FluxFillPipeline:
    """With the masked picture's 16 and the mask's 16 values among the 48 of a token."""
    return diffusers.FluxFillPipeline(scheduler=scheduler, **flux_parts(in_channels=48, out_channels=16))


def flux_fill_384(scheduler: Any) -> diffusers.FluxFillPipeline:
    """With the 384 values a token of FLUX.1 Fill: 64 of the latents, as many of the picture, 256 of the mask."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    size = {"block_out_channels": (8, 8, 8, 8), "latent_channels": 16, "norm_num_groups": 4, "sample_size": 64}
    decoder = diffusers.AutoencoderKL(**blocks, **size, layers_per_block=1, shift_factor=0.1, force_upcast=False)
    return diffusers.FluxFillPipeline(scheduler=scheduler, **flux_parts(decoder, in_channels=384, out_channels=64))


def pixart(scheduler: Any) -> diffusers.PixArtSigmaPipeline:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=16,
        use_additional_conditions=False,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tiny.tokenizer(),
        text_encoder=t5(),
        vae=vae(shift_factor=None),
        transformer=loud(transformer),
        scheduler=scheduler,
    )


def sana(scheduler: Any) -> diffusers.SanaPipeline:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        timestep_scale=0.5,
    )
    blocks = {f"{side}_block_types": "ResBlock" for side in ("encoder", "decoder")}
    widths = {f"{side}_block_out_channels": (8, 8, 8) for side in ("encoder", "decoder")}
    layers = {f"{side}_layers_per_block": (1, 1, 1) for side in ("encoder", "decoder")}
    scales = {f"{side}_qkv_multiscales": ((), (), ()) for side in ("encoder", "decoder")}
    dc = diffusers.AutoencoderDC(latent_channels=4, scaling_factor=0.4, **blocks, **widths, **layers, **scales)
    return diffusers.SanaPipeline(
        tokenizer=tiny.tokenizer(), text_encoder=gemma(), vae=dc, transformer=loud(transformer), scheduler=scheduler
    )


def lumina2(scheduler: Any) -> diffusers.Lumina2Pipeline:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 4, 8),
        axes_lens=(32, 16, 16),
        cap_feat_dim=16,
    )
    return diffusers.Lumina2Pipeline(
        transformer=loud(transformer),
        scheduler=scheduler,
        vae=vae(),
        text_encoder=gemma(),
        tokenizer=tiny.tokenizer(),
    )


def loud(transformer: Any, spread: float = 0.3) -> Any:
    """Weights wide enough for prompt, time and noise to be heard: as they are initialised, some would output zeros."""
    for weights in transformer.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=spread)
    return transformer
