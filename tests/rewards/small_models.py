"""Small random models in the layouts of the real ones, so that no test needs trained weights."""

import json

import torch
from safetensors.torch import save_file

PROMPTS = ["red apple", "blue cat"] * 3
WORDS = ["<pad>", "<end>", "<unk>", "red", "blue", "apple", "cat", "noto", "style", ",", "a"]
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "width": 16, "heads": 2, "layers": 1, "hf_tokenizer_name": ".", "vocab_size": len(WORDS)}
CONFIG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.3], "interpolation": "bicubic", "resize_mode": "shortest"}


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")


def save_clip(folder):
    """An open_clip model in the layout that `local-dir:` reads."""
    import open_clip

    torch.manual_seed(0)
    save_file(open_clip.CLIP(**CONFIG).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}))
    tokenizer().save_pretrained(folder)
    return folder


def classifier():
    """A transformers image-classification pipeline with seven kinds."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

    torch.manual_seed(0)
    config = ViTConfig(
        **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        **{"image_size": 32, "patch_size": 8, "initializer_range": 0.5},
        id2label=dict(enumerate(f"kind {k}" for k in range(7))),
    )
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    return pipeline("image-classification", model=ViTForImageClassification(config).eval(), image_processor=processor)


def zero_shot():
    """A transformers zero-shot-image-classification pipeline."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, pipeline

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(WORDS), "eos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 16}
    vision = {**small, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return pipeline("zero-shot-image-classification", model=model, tokenizer=tokenizer(), image_processor=processor)
