"""Random language models of many families, as small as their classes allow, built from configs without a network.

Not called `tiny`: the image models of tests/tiny.py have that name. Every model has 3 blocks of width 32, 128 words in
its vocabulary, the same weights every time and no gradients on them. `tokenizer()` fits them all.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ROLES = ("<system>", "<user>", "<assistant>")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>", "<begin>", "<end>", *ROLES)
PAD, BOS, EOS, UNK, IMAGE, VIDEO, BEGIN, END = range(8)
LETTERS = ["▁", "\n", *(chr(code) for code in range(33, 127))]
WORDS = "Yes No yes no good bad happy sad the a is not and you I it cat dog red blue Is".split()  # noqa: SIM905
VOCABULARY = len(SPECIAL) + len(LETTERS) + len(WORDS)  # 128
CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

SPREAD = 0.25  # of all weights: wide enough for every block to be heard and for greedy tokens to vary
ENDS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    **ENDS,
}
LLAMA: dict[str, Any] = {**SIZE, "intermediate_size": 48, "num_key_value_heads": 2}  # the llama-like families
GEMMA: dict[str, Any] = {**LLAMA, "head_dim": 8}
WINDOW = {"sliding_window": 8}  # shorter than most prompts here, so that sliding layers do slide
GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, **ENDS}

TEXT: dict[str, tuple[Any, type[hf.PreTrainedConfig], dict[str, Any]]] = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, LLAMA),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, GPT2),
    "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config, {**GEMMA, **WINDOW, "query_pre_attn_scalar": 8}),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, LLAMA),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, {**LLAMA, "head_dim": 8}),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig, {**LLAMA, **WINDOW}),
    "opt": (hf.OPTForCausalLM, hf.OPTConfig, {**SIZE, "ffn_dim": 48}),
    "falcon": (
        hf.FalconForCausalLM,
        hf.FalconConfig,
        {**SIZE, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48},
    ),
    "bloom": (hf.BloomForCausalLM, hf.BloomConfig, {**ENDS, "vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 3}),
    "phi": (hf.PhiForCausalLM, hf.PhiConfig, LLAMA),
    "phi3": (hf.Phi3ForCausalLM, hf.Phi3Config, {**LLAMA, "original_max_position_embeddings": 512}),
    "gpt_neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, {**SIZE, "intermediate_size": 48}),
    "olmo2": (hf.Olmo2ForCausalLM, hf.Olmo2Config, LLAMA),
    "cohere": (hf.CohereForCausalLM, hf.CohereConfig, LLAMA),
    "granite": (hf.GraniteForCausalLM, hf.GraniteConfig, {**LLAMA, "logits_scaling": 4.0, "embedding_multiplier": 3.0}),
}


def text_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The tiny causal language model of a family, in eval mode; shared by all tests, so leave it as it was."""
    return _text_model(name, dtype)


@cache
def _text_model(name: str, dtype: torch.dtype) -> Any:
    build, config, values = TEXT[name]
    return made(build, config(**values), dtype)


def made(build: Any, config: Any, dtype: torch.dtype) -> Any:
    """A model whose weights depend on nothing but its shapes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(config).eval().requires_grad_(False)
        for weights in model.parameters():
            if weights.ndim > 1:
                torch.nn.init.normal_(weights, std=SPREAD)
    return model.to(dtype)


@cache
def tokenizer() -> hf.PreTrainedTokenizerFast:
    """Some words, else letters, lossless: a word begins with its space, as in byte-level BPE; pads on the left."""
    pieces = [(piece, 0.0) for piece in SPECIAL] + [(letter, -10.0) for letter in LETTERS]
    words = Tokenizer(models.Unigram([*pieces, *(("▁" + word, -1.0) for word in WORDS)], unk_id=UNK))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    words.decoder = decoders.Metaspace(prepend_scheme="never")
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=list(SPECIAL[4:]),
        **names,
    )
    made.chat_template = CHAT
    return made


def tokens(rows: int, length: int, seed: int = 0, padded: int = 0) -> dict[str, torch.Tensor]:
    """Random words: input_ids and attention_mask (rows, length); row i is left-padded by i * `padded` columns."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(SPECIAL), VOCABULARY, (rows, length), generator=generator)
    real = torch.arange(length) >= padded * torch.arange(rows)[:, None]
    return {"input_ids": ids.where(real, torch.tensor(PAD)), "attention_mask": real.long()}
