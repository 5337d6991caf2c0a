"""What is compared in the steering study: how each vector is made, and how it is applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.forms import Form
from benchmarks.grains_runs import silently
from steer.language import SteeringVector, extract, grains, steering
from steer.language.data import Pair
from steer.language.extract.fitting import described
from steer.language.guard import PromptGuard
from steer.language.neutral import TEXTS
from steer.language.scoring import margins, perplexity

DRAWN = 4
"""Draws of best-of-n."""
NEUTRAL = {"choice": TEXTS[: len(TEXTS) // 2], "report": TEXTS[len(TEXTS) // 2 :]}
"""Texts for choosing a setting, and other ones for what is reported."""
ANSWER = {1: "Answer as someone with very much {subject} would.", -1: "Answer as someone without any {subject} would."}
SPEAK = {1: "Someone with very much {subject} speaks.", -1: "Someone without any {subject} speaks."}
INSTRUCTIONS: dict[Form, dict[int, str]] = {"published": ANSWER, "asked": ANSWER, "said": SPEAK}


@dataclass(frozen=True)
class Setting:
    """Where and how strongly: a layer, or None for all that the vector has."""

    layer: int | None
    strength: float


class Plain(NamedTuple):
    """Margins of the pairs and perplexities of the neutral texts, of a model that is not steered."""

    validation: Tensor
    held_out: Tensor
    perplexity: dict[str, float]


@dataclass(frozen=True, eq=False)
class Study:
    """A model, and pairs to fit to, to choose settings by, and to judge by."""

    model: Any
    tokenizer: Any
    name: str
    seed: int
    pairs: Sequence[Pair]
    validation: Sequence[Pair]
    held_out: Sequence[Pair]
    form: Form
    k: int
    points: Sequence[int]
    heads: int
    judged: str

    @cached_property
    def judge(self) -> Any:
        """The model that is steered and judged: itself, or a copy in half precision."""
        return self.model if self.judged == "float32" else deepcopy(self.model).to(getattr(torch, self.judged))

    @cached_property
    def gradients(self) -> list[grains.Attribution]:
        """Attributions of the steering pairs by integrated gradients; what chooses their tokens, or how many."""
        return self._attributed("ig")

    @cached_property
    def occlusions(self) -> list[grains.Attribution]:
        return self._attributed("occlusion")

    @cached_property
    def plain(self) -> Plain:
        found = {use: perplexity_of(self, use) for use in NEUTRAL}
        return Plain(margins_of(self, self.validation), margins_of(self, self.held_out), found)

    @cached_property
    def vectors(self) -> dict[str, SteeringVector]:
        """Method -> vector, as they are asked for."""
        return {}

    def vector(self, method: str) -> SteeringVector:
        if method not in self.vectors:
            self.vectors[method] = METHODS[method](self)
        return self.vectors[method]

    def gap(self, method: str) -> float | None:
        """The median completeness gap of the gradients behind a method's vector, None without any."""
        found = self.vectors[method].provenance.get("gap") if method in self.vectors else None
        return None if found is None else float(found)

    def _attributed(self, method: Any) -> list[grains.Attribution]:
        others = [pair.prompt for pair in self.pairs]
        given = {"others": others, "steps": self.points, "seed": self.seed}
        return [silently(grains.attribute, self.model, self.tokenizer, pair, method, **given) for pair in self.pairs]


def fitted(study: Study, found: list[grains.Attribution], **how: Any) -> SteeringVector:
    return grains.fit(study.model, study.tokenizer, study.pairs, study.k, attribution=found, seed=study.seed, **how)


def drawn(study: Study) -> SteeringVector:
    """A direction drawn evenly, at the sites of CAA and with its norms."""
    caa, generator = study.vector("caa"), torch.Generator().manual_seed(study.seed)
    random = {place: torch.randn(v.shape, generator=generator) for place, v in caa.directions.items()}
    return SteeringVector(random, caa.norms, described(study.model, "random", study.pairs)).normalized()


def paired(method: str) -> Callable[[Study], SteeringVector]:
    return lambda study: extract.fit(study.model, study.tokenizer, study.pairs, method)


RESPONSE: dict[str, Any] = {"method": "mean", "at": "response_last"}
METHODS: dict[str, Callable[[Study], SteeringVector] | None] = {
    "caa": paired("mean"),
    "pca": paired("pca"),
    "probe": paired("probe"),
    "iti": lambda study: extract.iti(study.model, study.tokenizer, study.pairs, study.heads),
    "grains": lambda study: fitted(study, study.gradients),
    "grains-mean": lambda study: fitted(study, study.gradients, **RESPONSE),
    "occlusion": lambda study: fitted(study, study.occlusions, **RESPONSE),
    "random-masks": lambda study: fitted(study, study.gradients, top="rand", **RESPONSE),
    "random": drawn,
    "prompt": None,
    "best-of-n": None,
}


def settings(method: str, layers: Sequence[int], strengths: Sequence[float], alphas: Sequence[float]) -> list[Setting]:
    """What is tried on the validation pairs."""
    if METHODS[method] is None:
        return [Setting(None, float(DRAWN) if method == "best-of-n" else 1.0)]
    if method == "iti":  # its heads are in many layers
        return [Setting(None, alpha) for alpha in alphas]
    return [Setting(layer, strength) for layer in layers for strength in strengths]


def steered(study: Study, method: str, setting: Setting) -> AbstractContextManager[Any]:
    """The model under a method, strength and sign included."""
    if METHODS[method] is None:
        return nullcontext()
    vector = study.vector(method)
    if method == "iti":
        return steering(study.judge, vector, setting.strength, relative=False, keep_norm=False)
    return steering(study.judge, vector[[setting.layer]], setting.strength)


def judged(study: Study, method: str, pairs: Sequence[Pair], sign: int = 1) -> Tensor:
    """(n,) margins under a method; those that are no vectors take the sign of +v or -v here."""
    if method == "prompt":
        return margins_of(study, instructed(study, pairs, sign))
    if method == "best-of-n":
        reward = margins_of(study, instructed(study, pairs, 1)) - margins_of(study, instructed(study, pairs, -1))
        return best_of(margins_of(study, pairs), sign * reward, DRAWN)
    return margins_of(study, pairs)


def instructed(study: Study, pairs: Sequence[Pair], sign: int) -> list[Pair]:
    """The pairs with an instruction in front."""
    guard = PromptGuard(study.name.replace("-", " "), INSTRUCTIONS[study.form][sign])
    return [replace(pair, prompt=guard(pair.prompt)) for pair in pairs]


def best_of(margins: Tensor, rewards: Tensor, n: int) -> Tensor:
    """Log-odds that the best of n draws is the wanted response, where one draw is it with log-odds `margins`.

    rewards  (n,) of the wanted less that of the other; at 0 the draw is left as it is

    With q the chance of the response that the reward prefers, log((1 - (1 - q)^n) / (1 - q)^n), or less that.
    """
    side = rewards.sign()
    lost = n * F.logsigmoid(-side * margins)  # log (1 - q)^n
    return torch.where(side == 0, margins, side * (torch.log(-torch.expm1(lost)) - lost))


def margins_of(study: Study, pairs: Sequence[Pair]) -> Tensor:
    """(n,) on the CPU."""
    return margins(study.judge, study.tokenizer, pairs).float().cpu()


def perplexity_of(study: Study, use: str) -> float:
    """Of neutral texts."""
    return perplexity(study.judge, study.tokenizer, NEUTRAL[use])
