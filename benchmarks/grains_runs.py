"""One pair at a time: what masking its tokens does, how complete its scores are, what they cost beside captum."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

import torch

import steer
from benchmarks.timing import alternating
from steer.bench.cells import Peak
from steer.language.data import Pair
from steer.language.grains import attribute, chosen
from steer.language.grains.attribute import Method, masked
from steer.language.grains.baselines import Baseline, start
from steer.language.grains.margin import preference, still
from steer.language.grains.oracle import captum_scores
from steer.language.grains.parts import prompt_ids
from steer.language.grains.tokens import content
from steer.measure import Interval


def dropped(
    model: Any,
    tokenizer: Any,
    pair: Pair,
    others: Sequence[str],
    method: Method,
    baseline: Baseline,
    k: int,
    draws: int,
) -> dict[str, Any]:
    """How far the margin falls when I+, I-, or as many random tokens are masked, the mean over `draws` of them."""
    found = silently(attribute, model, tokenizer, pair, method, baseline, others=others)
    margin = preference(model, tokenizer, pair)
    sets = [chosen(found, k), *(chosen(found, k, "rand", seed) for seed in range(draws))]
    rows = [masked(margin, model, tokenizer, part) for one in sets for part in one]
    plus, minus = (margin.value - margin(torch.stack(rows)).double().cpu()).reshape(-1, 2).T
    return {
        "margin": margin.value,
        "gap": found.gap,
        "steps": found.steps,
        "baseline": found.baseline,
        "tokens": [len(part) for part in sets[0]],
        "I+": float(plus[0]),
        "I-": float(minus[0]),
        "random+": float(plus[1:].mean()),
        "random-": float(minus[1:].mean()),
    }


def area(positive: torch.Tensor, negative: torch.Tensor) -> Interval:
    """Under the ROC curve: how often a value of (n,) is above one of (m,), a tie half; DeLong's variance, 95 %."""
    above = (positive[:, None] > negative).double() + (positive[:, None] == negative).double() / 2
    mean = float(above.mean())
    spread = 1.96 * float(above.mean(1).var() / len(positive) + above.mean(0).var() / len(negative)) ** 0.5
    return Interval(mean, mean - spread, mean + spread)


def gapped(
    model: Any, tokenizer: Any, pair: Pair, others: Sequence[str], kind: Baseline, levels: Sequence[int]
) -> list[dict[str, Any]]:
    """Error of the sum of scores, and what it should be, after each number of points."""
    found = []
    for steps in levels:
        one = silently(attribute, model, tokenizer, pair, baseline=kind, others=others, steps=steps)
        difference = one.margin - one.baseline_margin
        error = float(one.scores.double().sum()) - difference
        found.append({"steps": steps, "error": error, "difference": difference, "used": one.baseline})
    return found


def compared(model: Any, tokenizer: Any, pair: Pair, others: Sequence[str], steps: int, rounds: int) -> dict[str, Any]:
    """Seconds of both at the same points, so at the same completeness, and the largest distance of their scores.

    Ours is timed with all that `attribute` does; of captum its own call alone, on tokens that are there already.
    """
    kept: dict[str, Any] = {}

    def ours() -> None:
        kept["ours"] = silently(attribute, model, tokenizer, pair, others=others, steps=steps)

    with still(model):
        margin = preference(model, tokenizer, pair)
        known = prompt_ids(tokenizer, others)
        allowed = content(tokenizer, margin.ids, margin.image, known)
        begin = start("prompt", model, tokenizer, margin, allowed, known)

        def theirs() -> None:
            kept["captum"] = captum_scores(model, tokenizer, margin, begin, steps)

        seconds = alternating({"ours": ours, "captum": theirs}, rounds)
    return {
        "steps": steps,
        **{name: median(values) for name, values in seconds.items()},
        "gap": kept["ours"].gap,
        "apart": float((kept["ours"].scores - kept["captum"].cpu()).abs().max()),
        "prompt": len(margin.ids),
        "response": sum(len(ids) for ids, _ in margin.answers),
        "rounds": rounds,
    }


def peaks(pair: Pair, others: Sequence[str], steps: int) -> dict[str, float | None]:
    """MB at the peak of each method with the model, in a process of its own."""
    found = {}
    for name, method in (("ours_mb", "ig"), ("captum_mb", "captum")):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found[name] = pool.submit(_peak, pair, list(others), steps, method, torch.get_num_threads()).result()
    return found


def _peak(pair: Pair, others: list[str], steps: int, method: Method, threads: int) -> float | None:
    torch.set_num_threads(threads)
    model, tokenizer = steer.load("smollm2")
    silently(attribute, model, tokenizer, pair, "occlusion", batch=1)  # what a first pass allocates
    peak = Peak("cpu")
    silently(attribute, model, tokenizer, pair, method, others=others, steps=steps)
    return peak.megabytes()


def silently(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Gaps are in the rows; here they need no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="integrated gradients of")
        return call(*args, **kwargs)
