"""ActAdd: the difference of two prompts, token by token."""

from __future__ import annotations

from typing import Any

import torch

from steer.language.extract.fitting import described
from steer.language.record import norms, recording, run
from steer.language.tower import resolved
from steer.language.vectors import SteeringVector


@torch.no_grad()
def act_add(model: Any, tokenizer: Any, positive: str, negative: str, layer: int = 6) -> tuple[SteeringVector, ...]:
    """One vector for each token of a pair of prompts (ActAdd, arXiv 2308.10248): v_t = h_t(positive) - h_t(negative).

    The shorter prompt is filled up with spaces behind it. Vector t belongs to token t of the prompt that is steered,
    c = 3 to 15 of them in the paper:

        with ExitStack() as stack:
            for t, v in enumerate(act_add(model, tokenizer, "Love", "Hate")):
                where = Positions((t,))
                stack.enter_context(steering(model, v, 5.0, where=where, relative=False, keep_norm=False))

    Tokens that both begin with, a BOS above all, have the vector 0: it moves nothing.

    Raises ValueError for prompts that are the same to the tokenizer, and for a layer that the model does not have.
    """
    place = resolved(model, layer)
    rows = [tokenizer(text)["input_ids"] for text in (positive, negative)]
    if rows[0] == rows[1]:
        raise ValueError(f"{positive!r} and {negative!r} are the same tokens: expected two prompts that differ.")
    space = tokenizer(" ", add_special_tokens=False)["input_ids"][-1]
    ids = torch.tensor([row + [space] * (max(map(len, rows)) - len(row)) for row in rows])
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with recording(model, [place]) as found:
        run(model, tokens)
    states = found[place][-1].float().cpu()
    sizes, about = norms(model, tokens, [place]), described(model, "act_add", [positive, negative])
    return tuple(
        SteeringVector({place: v}, sizes, about | {"token": str(t)}) for t, v in enumerate(states[0] - states[1])
    )
