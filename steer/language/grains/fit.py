"""GrAInS (arXiv 2507.18043): a direction at each site out of what masking the tokens that matter does to the states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from steer.language.data import Pair
from steer.language.extract.directions import pca
from steer.language.extract.fitting import described
from steer.language.grains.attribute import Attribution, Method, attribute
from steer.language.grains.baselines import Baseline
from steer.language.grains.contrast import At, Contrast, contrast
from steer.language.grains.tokens import Top, chosen
from steer.language.record import Place
from steer.language.scoring import Reduction
from steer.language.tower import Site, tower
from steer.language.vectors import SteeringVector


def fit(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    k: int | tuple[int, int] = 10,
    *,
    method: Literal["pca", "mean"] = "pca",
    centred: bool = True,
    mode: Literal["both", "pos"] = "both",
    at: At = "prompt_last",
    sites: Iterable[Place] | None = None,
    attribution: Method | Sequence[Attribution] = "ig",
    baseline: Baseline = "prompt",
    steps: Sequence[int] | int = (20, 60, 180),
    tolerance: float = 0.05,
    reduction: Reduction = "mean",
    top: Top = "signed",
    batch: int | None = None,
    seed: int = 0,
) -> SteeringVector:
    """A steering vector from the tokens that push each pair's preference, found by gradients (arXiv 2507.18043).

    At each site, over all pairs: D+ = h(x) - h(x without I+), D- = h(x) - h(x without I-), v = dir(D+) - dir(D-), with
    I+ and I- the tokens that push most towards y+ and towards y-.

    k            tokens in I+ and in I-: `chosen`; top "signed", "rand" or "abs" as there
    method       dir: "pca", the first principal axis, norm 1, its sign that of the rows' mean; "mean", their mean
    centred      of "pca": the rows' mean is taken out first, as in the paper's code; False keeps it
    mode         "both", or "pos" for v = dir(D+)
    at           where states are read: "prompt_last", a token that is then not masked, or "response_last", behind each
                 response: `contrast`
    sites        None: behind every block
    attribution  a method of `attribute`, with `baseline`, `steps`, `tolerance`, `reduction`; baselines "prompt" come
                 from the other pairs. Or attributions of these pairs that are there already

    A pair without a token of a sign adds no row to that side. The vector carries the median norm of the states at each
    site, and in its provenance how it was made, with the median gap. Raises ValueError for no pairs, unknown names,
    attributions of other pairs, "abs" with "both" (equal sets cancel), no rows on a side, and fewer than 2 for "pca".
    """
    _check(pairs, method, mode, top)
    places = range(len(tower(model).blocks)) if sites is None else list(sites)
    found = _attributed(model, tokenizer, pairs, attribution, baseline, steps, tolerance, reduction, batch, seed)
    moves, counts = [], [0, 0]
    for number, one in enumerate(found):
        tokens = chosen(_unread(one) if at == "prompt_last" else one, k, top, seed + number)
        moves.append((contrast(model, tokenizer, one.pair, tokens, places, at), [len(part) > 0 for part in tokens]))
        counts = [have + len(part) for have, part in zip(counts, tokens)]
    directions = {}
    for place in moves[0][0].norms:
        directions[place] = direction(_rows(moves, 0, place), method, centred, place, "I+")
        if mode == "both":
            directions[place] = directions[place] - direction(_rows(moves, 1, place), method, centred, place, "I-")
    norms = {place: float(torch.cat([c.norms[place] for c, _ in moves]).median()) for place in directions}
    gaps = torch.tensor([one.gap for one in found])
    about = {
        "attribution": found[0].method,
        "baseline": ", ".join(sorted({one.baseline for one in found})),
        "gap": "" if gaps.isnan().all() else f"{float(gaps.nanmedian()):.4f}",
        "k": str(k),
        "masked": f"{counts[0]}, {counts[1]}",
        "top": top,
        "mode": mode,
        "at": at,
    }
    name = f"grains {method}" + ("" if method == "mean" or centred else ", uncentred")
    return SteeringVector(directions, norms, described(model, name, pairs) | {key: v for key, v in about.items() if v})


def direction(rows: Tensor, method: str, centred: bool, place: Site, side: str) -> Tensor:
    """The direction (width,) of differences (n, width). Raises ValueError for too few of them."""
    least = 2 if method == "pca" else 1
    if len(rows) < least:
        raise ValueError(
            f"site {place}: {len(rows)} pairs have a token in {side}, and method={method!r} needs {least}: give more "
            "pairs, or take method='mean'."
        )
    return pca(rows, torch.zeros_like(rows), centred) if method == "pca" else rows.mean(0)


def _check(pairs: Sequence[Pair], method: str, mode: str, top: str) -> None:
    if not len(pairs):
        raise ValueError("no pairs: expected at least one, with method='pca' two.")
    if method not in ("pca", "mean"):
        raise ValueError(f"method={method!r}: expected 'pca' or 'mean'.")
    if mode not in ("both", "pos"):
        raise ValueError(f"mode={mode!r}: expected 'both' or 'pos'.")
    if top == "abs" and mode == "both":
        raise ValueError("top='abs' puts the same tokens in I+ and I-, and v+ - v- is 0: take mode='pos'.")


def _attributed(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    attribution: Method | Sequence[Attribution],
    baseline: Baseline,
    steps: Sequence[int] | int,
    tolerance: float,
    reduction: Reduction,
    batch: int | None,
    seed: int,
) -> list[Attribution]:
    if not isinstance(attribution, str):
        texts = [(one.pair.prompt, *one.pair.options) for one in attribution]
        if texts != [(pair.prompt, *pair.options) for pair in pairs]:
            raise ValueError(f"{len(attribution)} attributions for {len(pairs)} pairs: expected those of these pairs.")
        return list(attribution)
    others = [pair.prompt for pair in pairs if pair.image is None]
    return [
        attribute(
            model,
            tokenizer,
            pair,
            attribution,
            baseline,
            others=others,
            steps=steps,
            tolerance=tolerance,
            reduction=reduction,
            batch=batch,
            seed=seed + number,
        )
        for number, pair in enumerate(pairs)
    ]


def _unread(one: Attribution) -> Attribution:
    """All but the last token may be chosen: a state at a masked token shows its own change, and no evidence."""
    allowed = one.allowed.clone()
    allowed[-1] = False
    return replace(one, allowed=allowed)


def _rows(moves: list[tuple[Contrast, list[bool]]], side: int, place: Site) -> Tensor:
    """The differences of one side, of the pairs that have a token there, (n, width)."""
    rows = [moved[side][place] for moved, has in moves if has[side]]
    return torch.cat(rows) if rows else torch.zeros(0, 1)
