"""emoji-clip and emoji-judge: two open_clip models of different architecture and seed on the same captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Generator, Tensor
from torch.nn import functional as F

from .files import save_half, save_json, write_folder
from .fit import Fit, fit, seeded
from .pictures import augment, draw_captioned
from .words import CONTEXT, tokenizer

TEXT = {"context_length": CONTEXT, "width": 128, "heads": 4, "layers": 2, "hf_tokenizer_name": "."}
CONFIGS = {
    "emoji-clip": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 32, "patch_size": None},
    },
    "emoji-judge": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear"},
    },
}
SEEDS = {"emoji-clip": 1, "emoji-judge": 2}
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
BATCH = 96


def build(name: str) -> Any:
    """A new open_clip CLIP with fixed initial weights."""
    import open_clip

    with seeded(SEEDS[name]):
        return open_clip.CLIP(**config_of(name))


def config_of(name: str) -> dict[str, Any]:
    """The open_clip configuration, with the size of the vocabulary filled in."""
    return {**CONFIGS[name], "text_cfg": {**TEXT, "vocab_size": len(tokenizer())}}


def contrastive(image: Tensor, text: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of scale cos(image, text) against all pairs with equal captions, `same` (b, b)."""
    logits = scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def loss(model: Any, generator: Generator, progress: float) -> Tensor:
    """One contrastive step; the pictures are augmented so that half-denoised ones are judged too."""
    images, texts = draw_captioned(BATCH, generator)
    tokens = tokenizer()(
        texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    ).input_ids
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    seen = augment(images, generator).mul(2).sub(1)
    return contrastive(model.encode_image(seen), model.encode_text(tokens), same, model.logit_scale.exp().clamp(max=50))


def save(name: str, model: Any) -> None:
    """Write what `open_clip.create_model("local-dir:...")` reads."""

    def fill(folder: Path) -> None:
        preprocess = {"mean": MEAN, "std": STD, "size": [64, 64], "interpolation": "bilinear", "resize_mode": "squash"}
        save_json({"model_cfg": config_of(name), "preprocess_cfg": preprocess}, folder / "open_clip_config.json")
        save_half(model, folder / "open_clip_model.safetensors")
        tokenizer().save_pretrained(folder)

    write_folder(name, fill)


def train(name: str, cache: Path, minutes: float) -> None:
    """Train (or finish training) one of the two and write it to the package."""
    config = Fit(minutes=minutes, lr=1.5e-3, weight_decay=0.1, ema=0.995, seed=SEEDS[name])
    save(name, fit(name, build(name), loss, config, cache))
