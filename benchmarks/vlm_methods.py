"""What is compared against false Yes of emoji-vlm: how each vector is made, and how it is applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from benchmarks.grains_runs import silently
from benchmarks.vlm_runs import Asked, asked, margins, pixels, prompt
from steer.language import SteeringVector, extract, grains, steering, vti
from steer.language.decode.vcd import noised
from steer.language.extract.fitting import described
from steer.zoo.build.vlm import draw
from steer.zoo.questions import DESCRIBE
from steer.zoo.vlm import Seeing

CAREFUL = "Look carefully, and say Yes only if you are sure that you see it. "
PLAUSIBLE = 0.1
"""VCD leaves an answer alone where the other has less than this share of its probability."""


class Setting(NamedTuple):
    """Where and how strongly: a layer, or None for all that the vector has."""

    layer: int | None
    strength: float


@dataclass(frozen=True, eq=False)
class Study:
    """A model, and the training scenes that its vectors are fitted to: another seed, other ones."""

    seeing: Seeing
    seed: int
    scenes: int
    k: tuple[int, int]
    steps: int

    @cached_property
    def asked(self) -> Asked:
        drawn = draw(2 * self.scenes, Generator().manual_seed(100 + self.seed))[-self.scenes :]
        return asked([one.shown for one in drawn], self.seed)

    @cached_property
    def attributions(self) -> list[grains.Attribution]:
        """Of the pairs, by integrated gradients from an image's mean and words drawn."""
        given = {"steps": self.steps, "baseline": "random", "seed": self.seed}
        return [silently(grains.attribute, *self.seeing, pair, **given) for pair in self.asked.pairs()]

    @cached_property
    def vectors(self) -> dict[str, Any]:
        """Method -> what it is fitted to be, as they are asked for."""
        return {}

    @cached_property
    def known(self) -> dict[tuple[int, bool], Tensor]:
        return {}

    def vector(self, method: str) -> Any:
        if method not in self.vectors:
            self.vectors[method] = METHODS[method](self)
        return self.vectors[method]

    def plain(self, given: Asked, noise: bool = False) -> Tensor:
        """Margins without steering, of the pictures or of noised ones as VCD has them."""
        key = (id(given), noise)
        if key not in self.known:
            generator = Generator().manual_seed(self.seed)
            change = (lambda pictures: noised(pictures, 500, generator)) if noise else None
            self.known[key] = margins(self.seeing, given, change=change)
        return self.known[key]


def caa(study: Study) -> SteeringVector:
    return extract.fit(*study.seeing, study.asked.pairs())


def fitted(**how: Any) -> Callable[[Study], SteeringVector]:
    """GrAInS, with as many tokens of each modality as the study says."""

    def fit(study: Study) -> SteeringVector:
        given = {"attribution": study.attributions, "seed": study.seed, **how}
        return grains.fit(*study.seeing, study.asked.pairs(), study.k, **given)

    return fit


def drawn(study: Study) -> SteeringVector:
    """A direction drawn evenly, at the sites of CAA and with its norms."""
    like, generator = study.vector("caa"), Generator().manual_seed(study.seed)
    random = {place: torch.randn(v.shape, generator=generator) for place, v in like.directions.items()}
    return SteeringVector(random, like.norms, described(study.seeing.model, "random", study.asked.pairs()))


def textual(study: Study) -> SteeringVector:
    """VTI's, from captions with an object that is not there to right ones. The vision tower has no blocks to push."""
    model, processor = study.seeing
    right = [one.caption for one in study.asked.shown]
    wrong = [
        text.replace(names[k % 2], names[2 + k // 2 % 2], 1)
        for k, (text, names) in enumerate(zip(right, study.asked.names))
    ]
    images = [pixels(one) for one in study.asked.shown]
    sides = [
        processor(text=[prompt(DESCRIBE) + text for text in texts], images=images, padding=True, return_tensors="pt")
        for texts in (right, wrong)
    ]
    return vti.textual(model, *(side.to(model.device) for side in sides))


METHODS: dict[str, Callable[[Study], Any] | None] = {
    "plain": None,
    "threshold": None,
    "prompt": None,
    "vcd": None,
    "vti": textual,
    "caa": caa,
    "grains": fitted(),
    "grains-mean": fitted(method="mean", at="response_last"),
    "random": drawn,
}
SEEDLESS = ("plain", "threshold", "prompt")


def settings(method: str, layers: Sequence[int], strengths: Sequence[float], betas: Sequence[float]) -> list[Setting]:
    """What is tried on the validation questions."""
    if method in ("plain", "prompt"):
        return [Setting(None, 0.0)]
    if method == "threshold":
        return [Setting(None, k / 2) for k in range(1, 13)]
    if method in ("vcd", "vti"):
        return [Setting(None, dial) for dial in (betas if method == "vcd" else strengths)]
    return [Setting(layer, strength) for layer in layers for strength in strengths]


def answered(study: Study, method: str, setting: Setting, given: Asked) -> Tensor:
    """Margins (pictures, 4) under a method."""
    if method == "prompt":
        return margins(study.seeing, given, before=CAREFUL)
    if METHODS[method] is None:
        plain = study.plain(given)
        return (
            contrasted(plain, study.plain(given, True), setting.strength)
            if method == "vcd"
            else plain - setting.strength
        )
    vector = study.vector(method)
    with steering(study.seeing.model, vector if setting.layer is None else vector[[setting.layer]], setting.strength):
        return margins(study.seeing, given)


def contrasted(plain: Tensor, noise: Tensor, beta: float) -> Tensor:
    """VCD between two answers: (1 + beta) m - beta m' where both are plausible."""
    return torch.where(plain.abs() <= -math.log(PLAUSIBLE), (1 + beta) * plain - beta * noise, plain)
