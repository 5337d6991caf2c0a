"""Which tokens of a prompt may be chosen, and which are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from steer.language.data import language

if TYPE_CHECKING:
    from steer.language.grains.attribute import Attribution

Top = Literal["signed", "rand", "abs"]
ROLES = ("system", "user", "assistant", "model")
log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """Positions in the prompt, int64: of the tokens that push towards y+, most first, and towards y-, most first."""

    positive: Tensor
    negative: Tensor


def content(tokenizer: Any, ids: Tensor, image: Tensor, others: Sequence[Sequence[int]] = ()) -> Tensor:
    """(P,) bool: image tokens, and words that a user wrote: no special token, no part of a template.

    Of a chat template it knows what stands around a lone user turn, and the name of a role behind a special token.
    Where other prompts are given, at least two, the tokens that all have in common with this one, at the head and at
    the foot, are a template too ("Q: ... A:"), unless nothing would be left.
    """
    words = language(tokenizer)
    special = torch.isin(ids.cpu(), torch.tensor(words.all_special_ids, dtype=ids.dtype))
    plain = ~special
    for head, foot in (_template(words, ids.tolist()), _form(ids.tolist(), others)):
        plain[:head] = False
        plain[len(ids) - foot :] = False
    for k in range(1, len(ids)):
        if special[k - 1] and words.decode(ids[k : k + 1]).strip() in ROLES:
            plain[k : k + 2] &= torch.tensor([False, bool(words.decode(ids[k + 1 : k + 2]).strip())])[: len(ids) - k]
    return plain.to(ids.device) | image


def _template(words: Any, ids: list[int]) -> tuple[int, int]:
    """How many tokens at the head and the foot of the prompt are those of the chat template, (0, 0) if it has none."""
    if not getattr(words, "chat_template", None):
        return 0, 0
    mark = "\u2402"
    text = words.apply_chat_template([{"role": "user", "content": mark}], add_generation_prompt=True, tokenize=False)
    around = [words(part, add_special_tokens=False)["input_ids"] for part in text.partition(mark)[::2]]
    start = next((k for k in (0, 1) if ids[k : k + len(around[0])] == around[0]), None)
    if start is None or not around[0]:
        return 0, 0
    foot = around[1] if ids[len(ids) - len(around[1]) :] == around[1] else []
    return start + len(around[0]), len(foot)


def _form(ids: list[int], others: Sequence[Sequence[int]]) -> tuple[int, int]:
    """How many tokens at the head and the foot all prompts share, (0, 0) if that is all of this one."""
    if len(others) < 2:
        return 0, 0

    def shared(side: int) -> int:
        columns = zip(*(row[::side] for row in (ids, *others)))
        return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))

    head, foot = shared(1), shared(-1)
    return (head, foot) if head + foot < len(ids) else (0, 0)


def chosen(attribution: Attribution, k: int | tuple[int, int] = 10, top: Top = "signed", seed: int = 0) -> Chosen:
    """I+ and I-: the k tokens that push most towards y+, and the k that push most towards y- (arXiv 2507.18043).

    k    of all tokens in one ranking, or (of the text, of the image) in two
    top  "signed"  the k largest scores above 0 and the k smallest below 0; where there are fewer, fewer
         "rand"    as many tokens as that, drawn without repetition: the control
         "abs"     the k of largest absolute score, in both sets

    BOS, template and image-boundary tokens are never chosen. Raises ValueError for another `top` and for k < 0.
    """
    groups = _groups(attribution, k)
    if top not in ("signed", "rand", "abs"):
        raise ValueError(f"top={top!r}: expected 'signed', 'rand' or 'abs'.")
    found = [_signed(attribution.scores, places, count) for places, count in groups]
    if any(len(part) < count for (_, count), pair in zip(groups, found) for part in pair):
        sizes = [tuple(map(len, pair)) for pair in found]
        log.info("fewer than %s tokens of a sign in %r: took (I+, I-) %s", k, attribution.pair.prompt[:40], sizes)
    if top == "rand":
        generator = torch.Generator().manual_seed(seed)
        found = [_drawn(places, pair, generator) for (places, _), pair in zip(groups, found)]
    elif top == "abs":
        ranked = [places[attribution.scores[places].abs().argsort(descending=True)] for places, _ in groups]
        found = [(order[:count], order[:count]) for order, (_, count) in zip(ranked, groups)]
    return Chosen(*(torch.cat(parts) for parts in zip(*found)))


def _groups(attribution: Attribution, k: int | tuple[int, int]) -> list[tuple[Tensor, int]]:
    """Positions that are ranked together, and how many of them to take of each sign."""
    counts = (k,) if isinstance(k, int) else k
    if len(counts) not in (1, 2) or min(counts) < 0 or not any(counts):
        raise ValueError(f"k={k}: expected a number of tokens, or one of text tokens and one of image tokens.")
    if isinstance(k, int):
        return [(attribution.allowed.nonzero()[:, 0], k)]
    kinds = (attribution.allowed & ~attribution.image, attribution.allowed & attribution.image)
    return [(kind.nonzero()[:, 0], count) for kind, count in zip(kinds, k)]


def _signed(scores: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    order = places[scores[places].argsort(descending=True)]
    top, low = order[:k], order.flip(0)[:k]
    return top[scores[top] > 0], low[scores[low] < 0]


def _drawn(places: Tensor, like: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shuffled = places[torch.randperm(len(places), generator=generator)]
    a, b = map(len, like)
    return shuffled[:a], shuffled[a : a + b]
