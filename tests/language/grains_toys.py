"""What GrAInS is tried on: margins with a known integral, and a model in which a direction is planted."""

from __future__ import annotations

from math import nan

import torch
import transformers as hf
from tiny_models import LLAMA, made, tokenizer
from torch import Tensor

from steer.language.data import Pair
from steer.language.grains.baselines import Start
from steer.language.grains.margin import Margin, Scored

GOOD, BAD = (" good", " happy", " yes"), (" bad", " sad", " no")
PLAIN = (" the", " cat", " dog", " it", " red", " blue")


def toy(function, width: int = 6, length: int = 5, seed: int = 0) -> tuple[Margin, Start]:
    """A margin that is function(e), e (n, length, width): two logits f and 0 whose normaliser cancels."""
    generator = torch.Generator().manual_seed(seed)
    embeds, begin = torch.randn(2, length, width, generator=generator, dtype=torch.float64)

    def run(rows: Tensor, read: Tensor) -> Tensor:
        value = function(rows)
        return torch.stack([value, torch.zeros_like(value)], -1)[:, None].expand(-1, len(read), -1)

    one, weight = torch.tensor([0, 1]), torch.tensor([1.0, -1.0], dtype=torch.float64)
    scored = Scored(run, embeds[:0], torch.zeros(2, dtype=torch.long), one, weight, ())
    margin = Margin((scored,), embeds, torch.arange(length), torch.zeros(length, dtype=torch.bool), (), nan, rows=7)
    return margin, Start(begin, None, "random")


def planted(seed: int = 0) -> tuple[hf.LlamaForCausalLM, Tensor]:
    """A Llama that says Yes for good words and No for bad ones, and the direction (32,) along which it does.

    Words have embeddings off u and w, good ones + u, bad ones - u. The first block averages <u, word> over what came
    before and writes it along w; nothing else writes; the head reads Yes along w and No against it.
    """
    model = made(hf.LlamaForCausalLM, hf.LlamaConfig(**LLAMA), torch.float64)
    generator = torch.Generator().manual_seed(seed)
    u, w = torch.linalg.qr(torch.randn(32, 2, generator=generator, dtype=torch.float64))[0].T
    words = tokenizer()
    number = {word: words(word)["input_ids"][0] for word in (*GOOD, *BAD, " Yes", " No")}
    for block in model.model.layers:
        for part in (block.self_attn.o_proj, block.mlp.down_proj):
            part.weight.zero_()
    first = model.model.layers[0].self_attn
    for part in (first.q_proj, first.k_proj, first.v_proj):
        part.weight.zero_()
    first.v_proj.weight[0], first.o_proj.weight[:, 0] = u, 4 * w
    table = model.get_input_embeddings().weight
    table -= table @ torch.stack([u, w]).T @ torch.stack([u, w])
    table[[number[word] for word in GOOD]] += u
    table[[number[word] for word in BAD]] -= u
    model.lm_head.weight.zero_()
    model.lm_head.weight[number[" Yes"]], model.lm_head.weight[number[" No"]] = w, -w
    return model, w


def wordy(count: int, length: int = 8, seed: int = 0) -> list[Pair]:
    """Prompts of random words, some good and some bad, answered by Yes against No."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(count):
        kinds = torch.tensor([0, 1, *torch.randint(4, (length - 2,), generator=generator)])
        kinds = kinds[torch.randperm(length, generator=generator)].tolist()
        bags = (GOOD, BAD, PLAIN, PLAIN)
        picked = [bags[kind][int(torch.randint(len(bags[kind]), (), generator=generator))] for kind in kinds]
        pairs.append(Pair("<s>" + "".join(picked), " Yes", " No"))
    return pairs
