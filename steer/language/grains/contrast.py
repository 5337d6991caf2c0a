"""How the states of a model move when the tokens that push it one way are masked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from steer.language.data import Pair
from steer.language.edits import norm
from steer.language.grains.attribute import masked
from steer.language.grains.margin import preference
from steer.language.grains.tokens import Chosen
from steer.language.record import Place, recording
from steer.language.tower import Site

At = Literal["prompt_last", "response_last"]


class Contrast(NamedTuple):
    """For each site: h(x) - h(x \\ I+) and h(x) - h(x \\ I-), (1 or 2, width), and the norms |h(x)| of x's tokens."""

    positive: dict[Site, Tensor]
    negative: dict[Site, Tensor]
    norms: dict[Site, Tensor]


@torch.no_grad()
def contrast(
    model: Any, tokenizer: Any, pair: Pair, chosen: Chosen, sites: Iterable[Place], at: At = "prompt_last"
) -> Contrast:
    """Differences of the states at some sites between a prompt and the same prompt with tokens masked (2507.18043).

    Text is masked by the pad token, else unk; an image's tokens by zero rows. Length, positions and attention mask
    stay, responses are never masked. All sites come from one pass of three rows where the one-row layout fits.

    at  "prompt_last": the last token of the prompt, one row a pair; "response_last": the last token of y+ and that of
        y- behind it, two rows a pair

    Raises ValueError for another `at`, and for positions that are not in the prompt.
    """
    if at not in ("prompt_last", "response_last"):
        raise ValueError(f"at={at!r}: expected 'prompt_last' or 'response_last'.")
    margin = preference(model, tokenizer, pair, whole=at == "response_last")
    size, places = len(margin.ids), torch.cat(chosen)
    if len(places) and not 0 <= int(places.min()) <= int(places.max()) < size:
        raise ValueError(f"positions {places.tolist()} of a prompt with {size} tokens: expected 0 to {size - 1}.")
    rows = torch.stack([margin.embeds, *(masked(margin, model, tokenizer, part) for part in chosen)])
    states: dict[Site, list[Tensor]] = {}
    sizes: dict[Site, Tensor] = {}
    for scored in margin.scored if at == "response_last" else margin.scored[:1]:
        with recording(model, sites) as found:
            scored.logits(rows)
        read = scored.ends if at == "response_last" else (size - 1,)
        for place, (hidden, *_) in found.items():
            states.setdefault(place, []).append(hidden[:, list(read)].float())
            sizes[place] = norm(hidden[0, :size])[:, 0]
    moved = {place: torch.cat(parts, 1) for place, parts in states.items()}
    first, second = ({place: h[0] - h[k] for place, h in moved.items()} for k in (1, 2))
    return Contrast(first, second, sizes)
