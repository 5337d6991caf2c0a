"""Detectors of texts about a subject: keywords, a linear probe on a model's states, a model that says yes or no."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from steer.language.data import Pair, whole
from steer.language.extract.directions import Logistic, logistic
from steer.language.record import activations
from steer.language.scoring import margins
from steer.language.tower import Site, resolved

YES_NO = 'Is the following text about {subject}? Answer yes or no.\n"{text}"\nAnswer:'


class Detector(Protocol):
    """texts -> (n,) scores in [0, 1]: how surely each is about what must not be answered."""

    def __call__(self, texts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class Keywords:
    """1 for a text with one of the words in it, else 0; case does not matter.

    whole  a word that is part of another does not count ("art" in "party")
    """

    words: tuple[str, ...]
    whole: bool = True

    def __post_init__(self):
        if isinstance(self.words, str) or not self.words or not all(self.words):
            raise ValueError(f"words {self.words!r}: expected a tuple of at least one word, none empty.")

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([float(bool(self.found(text))) for text in texts])

    def found(self, text: str) -> tuple[str, ...]:
        """Those of the words that are in a text."""
        edge = r"(?<!\w){}(?!\w)" if self.whole else "{}"
        return tuple(w for w in self.words if re.search(edge.format(re.escape(w)), text, re.IGNORECASE))


@dataclass(frozen=True, eq=False)
class Probe:
    """sigmoid(w . h + b), h the mean over a text's tokens of the model's states at one site; see `Probe.fit`."""

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    site: Site
    weights: Logistic = field(repr=False)

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        positive: Sequence[str],
        negative: Sequence[str],
        layer: Site | int = -1,
        penalty: float = 1.0,
    ) -> Probe:
        """Logistic regression of texts to be found against others; it costs one forward a text.

        layer    the block whose output is pooled; the last by default
        penalty  1 / C of the L2 penalty, see `extract.directions.logistic`

        Raises ValueError where one kind of text is missing.
        """
        place = resolved(model, layer)
        rows = pooled(model, tokenizer, [*positive, *negative], place)
        labels = torch.arange(len(rows), device=rows.device) < len(positive)
        return cls(model, tokenizer, place, logistic(rows, labels, penalty))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return self.weights(pooled(self.model, self.tokenizer, texts, self.site)).sigmoid().cpu()


def pooled(model: Any, tokenizer: Any, texts: Sequence[str], place: Site) -> Tensor:
    """Mean of each text's states at a site, (n, width) float32."""
    return activations(model, whole(tokenizer, texts).inputs(), [place], at="mean")[place]


@dataclass(frozen=True)
class YesNo:
    """A language model as the judge: P(yes) / (P(yes) + P(no)) after a one-line question.

    template  has {subject} and {text}; give a chat model one in its own format, by `data.chat`
    words     yes and no as they follow it, with their space: in a chat ("Yes", "No")
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    subject: str
    template: str = YES_NO
    words: tuple[str, str] = (" yes", " no")

    def __call__(self, texts: Sequence[str]) -> Tensor:
        # not str.format: braces in a text, or in a chat template, are no fields
        asked = self.template.replace("{subject}", self.subject)
        pairs = [Pair(asked.replace("{text}", text), *self.words) for text in texts]
        return margins(self.model, self.tokenizer, pairs, "sum").sigmoid().cpu()


def threshold_at(detector: Detector, harmless: Sequence[str], rate: float = 0.05) -> float:
    """The least threshold that blocks at most `rate` of harmless texts, which should be others than were fitted on.

    Raises ValueError for a rate outside [0, 1) and for no texts.
    """
    if not 0 <= rate < 1 or not len(harmless):
        raise ValueError(f"rate {rate} with {len(harmless)} harmless texts: expected 0 <= rate < 1, and some texts.")
    scores = detector(harmless).sort(descending=True).values
    passes = scores[int(rate * len(scores))]  # the highest that must; the next number up in its own precision blocks
    return float(torch.nextafter(passes, torch.full_like(passes, torch.inf)))
