"""Which tokens of a prompt push a model towards the preferred answer, and which away from it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from steer.language.data import Pair, language
from steer.language.grains.baselines import Baseline, Start, mask_id, start
from steer.language.grains.margin import Margin, preference, still
from steer.language.grains.oracle import captum_scores
from steer.language.grains.parts import prompt_ids
from steer.language.grains.tokens import content
from steer.language.scoring import Reduction

Method = Literal["ig", "gradient", "occlusion", "captum"]
INCOMPLETE = 0.2
"""A completeness gap above which integrated gradients are not to be believed."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each token of a pair's prompt adds to the preference margin.

    tokens           (P,) as text
    ids              (P,) int64
    scores           (P,) float32: above 0 towards y+, below 0 towards y-; 0 where no token may be chosen
    allowed          (P,) bool: may be chosen, see `content`
    image            (P,) bool: stands for a part of an image
    margin           f(x) = log p(y+ | x) - log p(y- | x)
    baseline_margin  f(b) at the baseline, nan for "occlusion"
    gap              |sum of scores - (f(x) - f(b))| / |f(x) - f(b)|, nan for "occlusion"
    steps            points at which the gradient was taken
    method, baseline how it was made; "prompt" says "random" here where no other prompt was as long
    """

    pair: Pair
    tokens: tuple[str, ...]
    ids: Tensor
    scores: Tensor
    allowed: Tensor
    image: Tensor
    margin: float
    baseline_margin: float
    gap: float
    steps: int
    method: Method
    baseline: str

    def __repr__(self) -> str:
        what = f"{len(self.tokens)} tokens, margin {self.margin:.3f}, from {self.baseline} {self.baseline_margin:.3f}"
        return f"Attribution({self.method}: {what}, gap {self.gap:.1%}, {self.steps} steps)"


class Found(NamedTuple):
    """Scores (P,), the margins of prompt and baseline, and the points that were looked at."""

    scores: Tensor
    margins: tuple[float, float]
    steps: int

    @property
    def gap(self) -> float:
        difference = self.margins[0] - self.margins[1]
        error = abs(float(self.scores.sum()) - difference)
        return error / abs(difference) if difference else error * float("inf") if error else 0.0


def attribute(
    model: Any,
    tokenizer: Any,
    pair: Pair,
    method: Method = "ig",
    baseline: Baseline = "prompt",
    *,
    others: Sequence[str] = (),
    steps: Sequence[int] | int = (20, 60, 180),
    tolerance: float = 0.05,
    reduction: Reduction = "mean",
    batch: int | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Attribution:
    """Attribute the preference margin of a pair to the tokens of its prompt (GrAInS, arXiv 2507.18043).

    f(e) = log p(y+ | e) - log p(y- | e) over whole responses, e the embeddings (P, d) of the prompt, b a baseline.

    "ig"         A_i = sum over d of (e_i - b_i) * mean over a in [0, 1] of df/de_i at b + a (e - b) (arXiv 1703.01365),
                 by the midpoint rule: the first of `steps`, then three times as many points, which contain those that
                 were there, until the completeness gap is at most `tolerance`
    "gradient"   the same with one point, a = 1
    "occlusion"  A_i = f(x) - f(x with token i masked): a forward row for each token; cheaper below about 40 tokens
    "captum"     integrated gradients by captum's `LLMGradientAttribution`, token by token of each response

    tokenizer  of a vision-language model: its processor
    baseline   see `baselines.start`; "prompt" draws from `others`
    others     other prompts of the form of this one: what all of them share at head and foot is a template (`content`)
    reduction  "mean" over the tokens of a response, which takes out its length, or "sum"
    batch      rows at once; by default what fits the memory
    seed       of what the baseline draws

    The model's weights and flags are left as they were. Warns when the gap is above 20 % in the end, or with `strict`
    raises ValueError. Raises ValueError for an empty response, unknown names, steps that do not triple, and for a
    quantised model whose kernels have no backward.
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r}: expected one of {get_args(Method)}.")
    levels = _levels(steps)
    with still(model):
        margin = preference(model, tokenizer, pair, reduction, batch)
        known = prompt_ids(tokenizer, others)
        allowed = content(tokenizer, margin.ids, margin.image, known)
        if method == "occlusion":
            found, kind = _occluded(margin, model, tokenizer, allowed), "mask"
        else:
            _trainable(model)
            begin = start(baseline, model, tokenizer, margin, allowed, known, seed)
            kind = begin.kind
            found = _gradients(method, margin, begin, levels, tolerance, model, tokenizer)
    gap = float("nan") if method == "occlusion" else found.gap
    if method != "gradient" and gap > INCOMPLETE:
        _incomplete(gap, found.steps, kind, pair, strict)
    words = language(tokenizer)
    tokens = tuple(words.decode([k]) for k in margin.ids.tolist())
    return Attribution(
        pair,
        tokens,
        margin.ids.cpu(),
        found.scores.float().cpu(),
        allowed.cpu(),
        margin.image.cpu(),
        margin=found.margins[0],
        baseline_margin=found.margins[1],
        gap=gap,
        steps=found.steps,
        method=method,
        baseline=kind,
    )


def _levels(steps: Sequence[int] | int) -> tuple[int, ...]:
    levels = (steps,) if isinstance(steps, int) else tuple(steps)
    if not levels or levels[0] < 1 or any(3 * a != b for a, b in zip(levels, levels[1:])):
        raise ValueError(f"steps={steps}: expected counts that triple, as (20, 60, 180), whose midpoints nest.")
    return levels


def _gradients(
    method: Method,
    margin: Margin,
    begin: Start,
    levels: tuple[int, ...],
    tolerance: float,
    model: Any,
    tokenizer: Any,
) -> Found:
    f, f0 = margin.value, float(margin(begin.embeds[None]))
    if method == "captum":
        return Found(captum_scores(model, tokenizer, margin, begin, levels[-1]), (f, f0), levels[-1])
    if method == "gradient":
        slope = margin.gradient(margin.embeds[None], begin.embeds)
        return Found(_along(margin, begin, slope), (f, f0), 1)
    return integrated(margin, begin, levels, tolerance, (f, f0))


def integrated(
    margin: Margin, begin: Start, levels: tuple[int, ...], tolerance: float, margins: tuple[float, float]
) -> Found:
    """The midpoint rule on the line from the baseline to the prompt, refined until it is complete."""
    exact = torch.promote_types(margin.embeds.dtype, torch.float32)
    total, found = torch.zeros_like(margin.embeds, dtype=exact), None
    for level, count in enumerate(levels):
        along = torch.tensor(midpoints(count, nested=level > 0), dtype=exact, device=total.device)[:, None, None]
        line = begin.embeds + along.to(margin.embeds.dtype) * (margin.embeds - begin.embeds)
        total = total + margin.gradient(line, begin.embeds)
        found = Found(_along(margin, begin, total / count), margins, count)
        if found.gap <= tolerance:
            break
    assert found is not None  # there is at least one level
    return found


def midpoints(count: int, nested: bool = False) -> list[float]:
    """(i + 1/2) / count; nested leaves out the points of the rule with a third as many: every third, from i = 1."""
    return [(i + 0.5) / count for i in range(count) if not (nested and i % 3 == 1)]


def _along(margin: Margin, begin: Start, slope: Tensor) -> Tensor:
    return ((margin.embeds - begin.embeds) * slope).sum(-1)


def _occluded(margin: Margin, model: Any, tokenizer: Any, allowed: Tensor) -> Found:
    """The drop of the margin when one token is masked as `contrast` masks it."""
    places = allowed.nonzero()[:, 0]
    rows = [masked(margin, model, tokenizer, place[None]) for place in places]
    scores = torch.zeros(len(allowed), device=allowed.device)
    if rows:
        scores[places] = margin.value - margin(torch.stack(rows)).to(scores.dtype)
    return Found(scores, (margin.value, float("nan")), 0)


def masked(margin: Margin, model: Any, tokenizer: Any, places: Tensor) -> Tensor:
    """The prompt's embeddings (P, d) with some of its tokens masked: text by the mask token, image rows by zeros."""
    gone = torch.zeros_like(margin.image)
    gone[places.to(gone.device)] = True
    with torch.no_grad():
        blank = model.get_input_embeddings()(torch.tensor([[mask_id(tokenizer)]], device=gone.device))[0, 0]
        blank = torch.where(margin.image[:, None], torch.zeros_like(blank), blank)
        return torch.where(gone[:, None], blank, margin.embeds)


def _trainable(model: Any) -> None:
    """Without a backward in its kernels, what flows past them would be taken for the gradient."""
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is not None and not quantiser.is_trainable:
        raise ValueError(
            f"{type(model).__name__} is quantised by {type(quantiser).__name__}, whose kernels have no backward: use "
            "method='occlusion', or load it unquantised."
        )


def _incomplete(gap: float, steps: int, kind: str, pair: Pair, strict: bool) -> None:
    message = (
        f"integrated gradients of {pair.prompt[:60]!r} miss {gap:.0%} of the margin's difference at {steps} steps from "
        f"baseline {kind!r}: use method='occlusion', or baseline='prompt' with `others` of equal length."
    )
    if strict:
        raise ValueError(message)
    warnings.warn(message, stacklevel=3)
