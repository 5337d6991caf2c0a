"""ITI: a push inside the attention heads that know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from steer.language.extract.directions import logistic
from steer.language.extract.fitting import States, described, recorded
from steer.language.tower import Site, tower
from steer.language.vectors import SteeringVector


def iti(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Any],
    heads: int = 48,
    *,
    layers: Sequence[int] | None = None,
    held_out: float = 0.2,
    generator: Generator | None = None,
    rows: int = 16,
) -> SteeringVector:
    """Inference-time intervention (arXiv 2306.03341): theta_h sigma_h in the best heads, 0 in the others.

    What a head hands to the output projection, at the last token of each response, is told apart by a logistic probe;
    the `heads` with the best accuracy on held-out pairs are steered along theta_h, the unit vector from the mean of the
    negative to that of the positive states (the mass-mean direction), times sigma_h, the standard deviation of all
    states along it. The paper adds alpha = 15 of these at each generated token:

        steering(model, iti(...), 15.0, where="generated", relative=False, keep_norm=False)

    pairs      with `prompt`, `positive`, `negative`
    held_out   share of the pairs that judges the probes; a pair is on one side with both of its responses
    generator  of the split; None: the last pairs are held out

    The chosen heads stand in the provenance, best first, as layer.head:accuracy. Raises ValueError for more heads than
    there are, and for too few pairs to hold any out.
    """
    count = model.config.get_text_config(decoder=True).num_attention_heads
    places = [Site(layer, "heads") for layer in (range(len(tower(model).blocks)) if layers is None else layers)]
    kept = round(len(pairs) * (1 - held_out))
    if not 0 < heads <= count * len(places) or not 0 < kept < len(pairs):
        raise ValueError(
            f"{heads} heads of {count * len(places)}, {kept} of {len(pairs)} pairs to fit on: expected heads among "
            "those, and at least one pair on either side of the split."
        )
    states = recorded(model, tokenizer, pairs, places, "last", rows)
    order = torch.arange(len(pairs)) if generator is None else torch.randperm(len(pairs), generator=generator)
    split = order[:kept], order[kept:]
    scored = []
    for place, found in states.items():
        positive, negative = _by_head(found, count)
        scored += [(_accuracy(positive[:, h], negative[:, h], split), place, h) for h in range(count)]
    best = sorted(scored, key=lambda entry: (-entry[0], entry[1], entry[2]))[:heads]
    return _assembled(model, pairs, states, best, count)


def _assembled(
    model: Any,
    pairs: Sequence[Any],
    states: dict[Site, States],
    best: list[tuple[float, Site, int]],
    count: int,
) -> SteeringVector:
    directions: dict[Site, Tensor] = {}
    for _, place, h in best:
        positive, negative = _by_head(states[place], count)
        flat = directions.setdefault(place, torch.zeros(positive[0].numel()))
        flat.view(count, -1)[h] = _mass_mean(positive[:, h], negative[:, h])
    norms = {place: found.norm for place, found in states.items() if place in directions}
    about = {"heads": " ".join(f"{place.layer}.{h}:{accuracy:.3f}" for accuracy, place, h in best)}
    return SteeringVector(directions, norms, described(model, "iti", pairs) | about)


def _by_head(states: States, count: int) -> tuple[Tensor, Tensor]:
    """Positive and negative states (n, heads, width of a head)."""
    return states.positive.unflatten(1, (count, -1)), states.negative.unflatten(1, (count, -1))


def _mass_mean(positive: Tensor, negative: Tensor) -> Tensor:
    """theta sigma of one head, (width of a head,)."""
    theta = positive.mean(0) - negative.mean(0)
    theta = theta / theta.norm().clamp_min(1e-30)
    return theta * (torch.cat([positive, negative]) @ theta).std(correction=0)


def _accuracy(positive: Tensor, negative: Tensor, split: tuple[Tensor, Tensor]) -> float:
    """Share of held-out states on the right side of a probe that was fitted on the others; of a dead head 0.5."""
    fitted, judged = split
    rows = torch.cat([positive[fitted], negative[fitted]])
    if (rows == rows[0]).all():
        return 0.5
    probe = logistic(rows, torch.arange(len(rows)) < len(fitted))
    right = torch.cat([probe(positive[judged]) > 0, probe(negative[judged]) <= 0])
    return float(right.float().mean())
