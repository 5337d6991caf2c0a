"""What the tests of guided decoding share: a reward, a count of tokens, and decoding that reads its whole text anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tiny_models import EOS, text_model, tokenizer, tokens
from torch import Tensor

from steer.language.decode.draw import Draws
from steer.language.tower import tower

FAMILIES = ("llama", "gpt2", "gemma2", "qwen2")
ENDS = [EOS, *range(40, 50)]  # ends of text, so many that short texts end at unequal places
SAMPLED = {"do_sample": True, "top_k": 0, "eos_token_id": ENDS, "pad_token_id": 0}
ENDLESS = {"do_sample": True, "top_k": 0, "suppress_tokens": [EOS], "pad_token_id": 0}


def odd(texts: list[str], prompts: list[str]) -> Tensor:
    """A number in [0, 1) that looks random, other for every text and prompt."""
    sums = [sum((i + 1) * ord(c) for i, c in enumerate(text + prompt)) for text, prompt in zip(texts, prompts)]
    return torch.tensor([0.6180339887 * number % 1 for number in sums])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generate(model: Any, inputs: dict[str, Tensor], decoder: Any, seed: Any = 0, **kwargs: Any) -> Any:
    """A `Decoded`; seed is a number, or one a prompt."""
    generator = [seeded(s) for s in seed] if isinstance(seed, list) else seeded(seed)
    settings = {"max_new_tokens": 12, **SAMPLED, **kwargs, "return_dict_in_generate": True}
    return model.generate(**inputs, custom_generate=decoder, generator=generator, **settings)


def plainly(model: Any, inputs: dict[str, Tensor], seed: int = 0, **kwargs: Any) -> Tensor:
    """The sequences of transformers' own loop, with torch's global generator seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.generate(**inputs, **{"max_new_tokens": 12, **SAMPLED, **kwargs})


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """rows x columns of every pass through the blocks."""
    found: list[int] = []
    hook = (
        tower(model).blocks[0].register_forward_pre_hook(lambda module, args: found.append(args[0].shape[:2].numel()))
    )
    try:
        yield found
    finally:
        hook.remove()


def anew(model: Any, inputs: dict[str, Tensor], reward: Any, n: int, block: int, total: int, pick: Any) -> Tensor:
    """Candidates (P, n, total) of blockwise search that reads prompt and text anew, without a cache, for each token.

    The random numbers are those of the decoder; nothing else is shared with it.
    """
    ids, real = (value.repeat_interleave(n, 0) for value in (inputs["input_ids"], inputs["attention_mask"]))
    prompts, columns = inputs["input_ids"].shape
    draws = Draws(n, seeded(), prompts, ids.device)
    names = [tokenizer().decode(row[m.bool()], skip_special_tokens=True) for row, m in zip(*inputs.values())]
    ends = torch.tensor(ENDS)

    def done() -> Tensor:
        return torch.isin(ids[:, columns:], ends).any(1)

    def scores() -> Tensor:
        texts = []
        for row in ids[:, columns:]:
            end = torch.isin(row, ends).nonzero()[:1, 0]
            texts.append(row[: int(end) + 1] if len(end) else row)
        texts = tokenizer().batch_decode(texts, skip_special_tokens=True)
        return reward(texts, [name for name in names for _ in range(n)]).view(prompts, n)

    for t in range(total):
        if t and t % block == 0 and not done().all():
            ended = done().view(prompts, n).all(1, keepdim=True)
            seen = torch.where(ended, torch.arange(n), draws_pick(draws, pick, scores()))
            rows = (seen + n * torch.arange(prompts)[:, None]).flatten()
            ids, real = ids[rows], real[rows]
        if done().all():
            break
        places = (real.cumsum(1) - 1).clamp_min(0)
        logits = model(input_ids=ids, attention_mask=real, position_ids=places, use_cache=False).logits[:, -1]
        new = draws.tokens(logits.float(), torch.arange(len(ids)))
        ids = torch.cat([ids, torch.where(done(), 0, new)[:, None]], 1)
        real = torch.cat([real, torch.ones_like(real[:, :1])], 1)
    return ids[:, columns:].unflatten(0, (prompts, n))


def draws_pick(draws: Draws, pick: Any, scores: Tensor) -> Tensor:
    return torch.cat([pick(scores[g], generator).index for g, generator in zip(draws.groups, draws.pickers)])


def prompts(name: str, rows: int = 2, length: int = 9, padded: int = 3) -> tuple[Any, dict[str, Tensor]]:
    """A tiny model, and prompts of unequal length for it."""
    return text_model(name), tokens(rows, length, padded=padded)


def alone(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One prompt by itself, without its padding."""
    real = inputs["attention_mask"][row].bool()
    return {name: value[row : row + 1, real] for name, value in inputs.items()}
