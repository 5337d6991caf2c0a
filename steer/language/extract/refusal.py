"""The refusal direction: one direction whose removal makes a chat model comply, and whose addition makes it refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steer.language.data import Encoded, whole
from steer.language.extract.fitting import described
from steer.language.record import norms, recording, run
from steer.language.steering import steering
from steer.language.tower import PARTS, Site, resolved, tower
from steer.language.vectors import SteeringVector


@torch.no_grad()
def refusal(
    model: Any,
    tokenizer: Any,
    harmful: Sequence[str],
    harmless: Sequence[str],
    words: Sequence[int],
    *,
    positions: int = 1,
    held_out: float = 0.2,
    divergence: float = 0.1,
    induced: float = 0.0,
    tail: float = 0.2,
    rows: int = 16,
) -> SteeringVector:
    """The direction that mediates refusal (arXiv 2406.11717), by difference of means and a search on held-out prompts.

    Candidates are r = mean state of harmful - mean state of harmless prompts, at each of the last `positions` tokens
    behind each block. Removed everywhere (`everywhere`), r should leave little refusal on harmful prompts and change
    little on harmless ones; added behind its block, it should make harmless ones refused: see `choose`.

        steering(model, everywhere(r, model), 1.0, edit="ablate", keep_norm=False)       to comply
        steering(model, r, 1.0, relative=False, keep_norm=False)                         to refuse

    harmful, harmless  complete prompts (`data.chat`), whose last tokens are those of the template
    words              ids of the tokens that a refusal begins with, such as "I" and "As"
    positions          tokens that the template puts behind the instruction
    held_out           share of either list, from its end, that judges; the paper has 128 prompts and 32 to judge
    divergence         nats by which removal may change the next token of harmless prompts, KL(plain | removed)
    induced            refusal score, see `refusal_score`, that adding r must reach on harmless prompts
    tail               share of the last blocks that is not considered: there r is about words

    Raises ValueError for lists too short to split, prompts shorter than `positions`, and where no candidate passes.
    """
    fitted, judged = _split(harmful, harmless, held_out)
    depth = len(tower(model).blocks)
    places = [Site(k) for k in range(int(depth * (1 - tail)) - 1)]
    if not places:
        raise ValueError(f"tail={tail} of {depth} blocks leaves none: expected a smaller share.")
    bad, good = (_means(model, whole(tokenizer, texts), places, positions, rows) for texts in fitted)
    candidates = [(place, k, bad[place][k] - good[place][k]) for k in range(positions) for place in places]
    asked, neutral = (whole(tokenizer, texts) for texts in judged)
    plain = _log_probs(model, neutral, rows)
    scores = [
        _scores(model, SteeringVector({place: r}), asked, neutral, plain, words, rows) for place, _, r in candidates
    ]
    place, k, r = candidates[choose(torch.stack(scores), divergence, induced)]
    counted = {"examples": f"{len(harmful)} harmful, {len(harmless)} harmless", "position": str(k - positions)}
    about = described(model, "refusal", [*harmful, "", *harmless]) | counted
    return SteeringVector({place: r}, norms(model, whole(tokenizer, fitted[1]).inputs(), [place]), about)


def choose(scores: Tensor, divergence: float = 0.1, induced: float = 0.0) -> int:
    """The candidate with the least refusal when removed, among those that pass: scores (n, 3) -> its row.

    A row holds the refusal score on harmful prompts with r removed, that on harmless ones with r added, and the KL on
    harmless ones with r removed. It passes with an added score >= `induced` and a KL <= `divergence`; NaN never does.
    Raises ValueError where none passes.
    """
    removed, added, moved = scores.unbind(1)
    passing = (added >= induced) & (moved <= divergence) & removed.isfinite()
    if not passing.any():
        raise ValueError(
            f"none of {len(scores)} candidates passes: the best added score is {added.max():.3g}, expected >= "
            f"{induced}; the least KL {moved.min():.3g}, expected <= {divergence}. Give more prompts, or ask for less."
        )
    return int(removed.where(passing, torch.inf).argmin())


def _scores(
    model: Any,
    vector: SteeringVector,
    asked: Encoded,
    neutral: Encoded,
    plain: Tensor,
    words: Sequence[int],
    rows: int,
) -> Tensor:
    """A row of scores for `choose`, (3,)."""
    with steering(model, everywhere(vector, model), 1.0, edit="ablate", keep_norm=False):
        removed = refusal_score(_log_probs(model, asked, rows), words).mean()
        changed = _log_probs(model, neutral, rows)
    with steering(model, vector, 1.0, relative=False, keep_norm=False):
        added = refusal_score(_log_probs(model, neutral, rows), words).mean()
    return torch.stack([removed, added, (plain.exp() * (plain - changed)).sum(-1).mean()])


def everywhere(vector: SteeringVector, model: Any) -> SteeringVector:
    """The direction of a vector with one site, wherever something is written to the stream: blocks, attention, MLPs.

    Raises ValueError for a vector with more sites.
    """
    if len(vector.sites) != 1:
        raise ValueError(f"a vector at {len(vector.sites)} sites: expected one, as in vector[12].")
    (v,) = vector.directions.values()
    sites = [Site(layer, part) for layer in range(len(tower(model).blocks)) for part in PARTS if part != "heads"]
    return SteeringVector(dict.fromkeys(sites, v), provenance=vector.provenance)


def refusal_score(log_probs: Tensor, words: Sequence[int]) -> Tensor:
    """log p - log(1 - p), p the probability of the `words` as next token; log_probs (n, vocabulary) -> (n,)."""
    p = log_probs[:, list(words)].exp().sum(-1)
    return torch.log(p + 1e-8) - torch.log1p(1e-8 - p)


def _split(harmful: Sequence[str], harmless: Sequence[str], held_out: float) -> tuple[list[Sequence[str]], ...]:
    kept = [round(len(texts) * (1 - held_out)) for texts in (harmful, harmless)]
    if not all(0 < k < len(texts) for k, texts in zip(kept, (harmful, harmless))):
        raise ValueError(
            f"{len(harmful)} harmful and {len(harmless)} harmless prompts, held_out={held_out}: expected at least one "
            "of each to fit and one to judge."
        )
    both = list(zip(kept, (harmful, harmless)))
    return [texts[:k] for k, texts in both], [texts[k:] for k, texts in both]


def _means(model: Any, texts: Encoded, places: Sequence[Site], positions: int, rows: int) -> dict[Site, Tensor]:
    """Site -> mean state at each of the last `positions` tokens, (positions, d), summed in float64."""
    if not 0 < positions <= int(texts.lengths.min()):
        raise ValueError(
            f"positions={positions}: expected 1 to {int(texts.lengths.min())}, the shortest prompt's tokens."
        )
    total = {
        resolved(model, place): torch.zeros(positions, tower(model).width, dtype=torch.float64) for place in places
    }
    for index in torch.arange(len(texts)).split(rows):
        with recording(model, places) as found:
            run(model, texts.take(index).inputs())
        for place in total:
            total[place] += found[place][-1][:, -positions:].double().sum(0).cpu()
    return {place: (part / len(texts)).float() for place, part in total.items()}


def _log_probs(model: Any, texts: Encoded, rows: int) -> Tensor:
    """log p of the token behind each text, (n, vocabulary) float64 on the CPU."""
    parts = [run(model, texts.take(index).inputs()).logits[:, -1] for index in torch.arange(len(texts)).split(rows)]
    return torch.cat([part.double().log_softmax(-1).cpu() for part in parts])
