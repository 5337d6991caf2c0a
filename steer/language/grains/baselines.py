"""Where the straight line of integrated gradients begins: a prompt that says nothing of what this one says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from steer.language.data import language
from steer.language.grains.margin import Margin

Baseline = Literal["prompt", "random", "pad", "mean", "zero"]


class Start(NamedTuple):
    """A baseline.

    embeds  (P, d)
    ids     (P,) tokens whose embeddings these are, or None for "mean" and "zero"
    kind    which it is: "prompt" falls back to "random"
    """

    embeds: Tensor
    ids: Tensor | None
    kind: Baseline


def start(
    kind: Baseline,
    model: Any,
    tokenizer: Any,
    margin: Margin,
    allowed: Tensor,
    others: Sequence[Sequence[int]] = (),
    seed: int = 0,
) -> Start:
    """The baseline of a margin's prompt; positions that may not be chosen keep their embeddings.

    "prompt"  tokens of another real prompt of equal length, drawn from `others`; without one, "random"
    "random"  tokens drawn evenly from the vocabulary, special ones left out
    "pad"     the padding token; "mean"  the mean of all embeddings; "zero"  zeros

    On a trained model only the first two keep integrated gradients complete: the rest are rows of equal vectors, far
    from all that it has seen. Embeddings come from the embedding module, which in some families scales them. An image's
    tokens begin at the mean of that image, for "zero" at zeros. Raises ValueError for another kind.
    """
    if kind not in get_args(Baseline):
        raise ValueError(f"baseline={kind!r}: expected one of {get_args(Baseline)}.")
    embeds, ids, image = margin.embeds, margin.ids, margin.image
    table, generator = model.get_input_embeddings(), torch.Generator().manual_seed(seed)
    made: Tensor | None = None
    if kind == "prompt":
        made = _other(ids, others, generator)
        kind = "random" if made is None else kind
    if kind == "random":
        made = _random(tokenizer, table.weight.shape[0], ids, generator)
    elif kind == "pad":
        made = torch.full_like(ids, mask_id(tokenizer))
    with torch.no_grad():
        if made is not None:
            made = torch.where(allowed & ~image, made.to(ids.device), ids)
            new = torch.where(image[:, None], embeds, table(made[None])[0])
        elif kind == "mean":
            new = table(torch.arange(table.weight.shape[0], device=ids.device)).mean(0).expand_as(embeds)
        else:
            new = torch.zeros_like(embeds)
        if image.any() and kind != "zero":
            new = torch.where(image[:, None], embeds[image].mean(0), new)
        return Start(torch.where(allowed[:, None], new, embeds), None if image.any() else made, kind)


def mask_id(tokenizer: Any) -> int:
    """The token that takes the place of a masked one: padding, else unknown. Raises ValueError where both are missing.

    An id of 0 is an id.
    """
    words = language(tokenizer)
    for found in (words.pad_token_id, words.unk_token_id):
        if found is not None:
            return int(found)
    raise ValueError("this tokenizer has no pad and no unk token to mask with: set tokenizer.pad_token.")


def _other(ids: Tensor, others: Sequence[Sequence[int]], generator: torch.Generator) -> Tensor | None:
    own = ids.tolist()
    fitting = [list(other) for other in others if len(other) == len(own) and list(other) != own]
    if not fitting:
        return None
    return torch.tensor(fitting[int(torch.randint(len(fitting), (), generator=generator))])


def _random(tokenizer: Any, known: int, ids: Tensor, generator: torch.Generator) -> Tensor:
    words = language(tokenizer)
    kept = torch.ones(min(len(words), known), dtype=torch.bool)
    kept[words.all_special_ids] = False
    return kept.nonzero()[torch.randint(int(kept.sum()), (len(ids),), generator=generator), 0]
