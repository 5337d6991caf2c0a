"""Random vision-language models of nine families, as small as their classes allow, built from configs.

Every picture becomes 4 image tokens. Read with `tiny_models`, whose sizes, vocabulary and tokens they share.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf
from einops import rearrange
from tiny_models import BEGIN, END, GEMMA, IMAGE, LLAMA, PAD, SPECIAL, VIDEO, VOCABULARY, WINDOW, made

TOWER: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "image_size": 8}
FOUR = {**TOWER, "patch_size": 4}  # 4 patches
SIXTEEN = {**TOWER, "patch_size": 2}  # 16 patches, which the model joins by fours
QWEN: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 24,
    "patch_size": 2,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 32,
}
THREE_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
MARKS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": BEGIN, "vision_end_token_id": END}


def llava() -> hf.LlavaConfig:
    """Its vision tower is deeper than its text tower: the longest list of blocks is the wrong one."""
    eyes = hf.CLIPVisionConfig(**FOUR, num_hidden_layers=5, projection_dim=16)
    return hf.LlavaConfig(vision_config=eyes, text_config=hf.LlamaConfig(**LLAMA), image_token_index=IMAGE)


def internvl() -> hf.InternVLConfig:
    sizes = {**SIXTEEN, "image_size": [8, 8], "patch_size": [2, 2]}
    eyes = hf.InternVLVisionConfig(**sizes, num_hidden_layers=2)
    return hf.InternVLConfig(
        vision_config=eyes, text_config=hf.Qwen2Config(**LLAMA), image_token_id=IMAGE, image_seq_length=4
    )


def smolvlm() -> hf.SmolVLMConfig:
    eyes = hf.SmolVLMVisionConfig(**SIXTEEN, num_hidden_layers=2)
    text = hf.LlamaConfig(**LLAMA)
    return hf.SmolVLMConfig(vision_config=eyes, text_config=text, image_token_id=IMAGE, pad_token_id=PAD)


def idefics3() -> hf.Idefics3Config:
    eyes = hf.Idefics3VisionConfig(**SIXTEEN, num_hidden_layers=2)
    text = hf.LlamaConfig(**LLAMA)
    return hf.Idefics3Config(vision_config=eyes, text_config=text, image_token_id=IMAGE, pad_token_id=PAD)


def qwen2_5_vl() -> hf.Qwen2_5_VLConfig:
    eyes = {**QWEN, "window_size": 8, "fullatt_block_indexes": [1]}
    return hf.Qwen2_5_VLConfig(vision_config=eyes, text_config={**LLAMA, **THREE_AXES}, **MARKS)


def qwen3_vl() -> hf.Qwen3VLConfig:
    eyes = {**QWEN, "depth": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return hf.Qwen3VLConfig(vision_config=eyes, text_config={**GEMMA, **THREE_AXES}, **MARKS)


def paligemma(text: hf.PreTrainedConfig | None = None) -> hf.PaliGemmaConfig:
    eyes = hf.SiglipVisionConfig(**FOUR, num_hidden_layers=2, vision_use_head=False)
    sizes = {"projection_dim": 32, "hidden_size": 32, "vocab_size": VOCABULARY}
    return hf.PaliGemmaConfig(
        vision_config=eyes, text_config=text or hf.GemmaConfig(**GEMMA), image_token_index=IMAGE, **sizes
    )


def paligemma2() -> hf.PaliGemmaConfig:
    return paligemma(hf.Gemma2Config(**GEMMA, **WINDOW, query_pre_attn_scalar=8))


def gemma3() -> hf.Gemma3Config:
    eyes = hf.SiglipVisionConfig(**SIXTEEN, num_hidden_layers=2, vision_use_head=False)
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    text = hf.Gemma3TextConfig(**GEMMA, **WINDOW, query_pre_attn_scalar=8, layer_types=layers)
    return hf.Gemma3Config(
        vision_config=eyes,
        text_config=text,
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=BEGIN,
        eoi_token_index=END,
    )


VISION: dict[str, tuple[Any, Callable[[], Any]]] = {
    "llava": (hf.LlavaForConditionalGeneration, llava),
    "internvl": (hf.InternVLForConditionalGeneration, internvl),
    "smolvlm": (hf.SmolVLMForConditionalGeneration, smolvlm),
    "idefics3": (hf.Idefics3ForConditionalGeneration, idefics3),
    "qwen2_5_vl": (hf.Qwen2_5_VLForConditionalGeneration, qwen2_5_vl),
    "qwen3_vl": (hf.Qwen3VLForConditionalGeneration, qwen3_vl),
    "paligemma": (hf.PaliGemmaForConditionalGeneration, paligemma),
    "paligemma2": (hf.PaliGemmaForConditionalGeneration, paligemma2),
    "gemma3": (hf.Gemma3ForConditionalGeneration, gemma3),
}


def vision_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The tiny vision-language model of a family, in eval mode; shared by all tests, so leave it as it was."""
    return _vision_model(name, dtype)


@cache
def _vision_model(name: str, dtype: torch.dtype) -> Any:
    build, config = VISION[name]
    return made(build, config(), dtype)


PICTURES = ("pixel_values", "image_grid_thw")
TYPES = {"qwen2_5_vl": "mm_token_type_ids", "qwen3_vl": "mm_token_type_ids", "gemma3": "token_type_ids"}


def vision_inputs(name: str, rows: int = 1, words: int = 7, seed: int = 0, padded: int = 0) -> dict[str, torch.Tensor]:
    """What a processor would give for as many unlike texts and pictures, left-padded to (rows, 7 + words) columns.

    Row i is i * `padded` columns of padding, one word, the picture's 6 (4 between its marks), and words to the end.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((rows, 7 + words), PAD)
    for i, row in enumerate(ids):
        text = torch.randint(len(SPECIAL), VOCABULARY, (7 + words - i * padded,), generator=generator)
        text[1:7] = torch.tensor([BEGIN, IMAGE, IMAGE, IMAGE, IMAGE, END])
        row[i * padded :] = text
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    if name in TYPES:
        inputs[TYPES[name]] = (ids == IMAGE).long()
    elif name.startswith("paligemma"):
        inputs["token_type_ids"] = torch.zeros_like(ids)  # all of it a prompt; 1 for words of a response
    return inputs | pictures(name, torch.rand(rows, 3, 8, 8, generator=generator) * 2 - 1)


def pictures(name: str, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The pixels (rows, 3, 8, 8) in [-1, 1] as the family's processor arranges them, one picture a row."""
    if name.startswith("qwen"):  # every 2x2 patch of 2 equal frames a row of its own, merged patches together
        patches = rearrange(pixels, "b c (h m i) (w n j) -> (b h w m n) c 1 i j", m=2, n=2, i=2, j=2)
        grid = torch.tensor([[1, 4, 4]] * len(pixels))
        return {"pixel_values": patches.expand(-1, -1, 2, -1, -1).flatten(1), "image_grid_thw": grid}
    several = name in ("smolvlm", "idefics3")  # these take several pictures a row
    return {"pixel_values": pixels[:, None] if several else pixels}


def row_of(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One row of `vision_inputs` or of `tokens` by itself, without its padding."""
    rows = len(inputs["input_ids"])
    real = inputs["attention_mask"][row].bool()
    parts = {key: value.chunk(rows)[row] for key, value in inputs.items()}
    return {key: part if key in PICTURES else part[:, real] for key, part in parts.items()}
