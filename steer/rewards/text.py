"""Rewards on texts: rules, and models of sentiment and class. One on likelihood is `steer.language.scoring.LogProb`."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steer.rewards.base import Reward
from steer.rewards.border import unknown

UNITS = ("words", "characters")


class TextReward(Reward):
    """(texts, prompts, one a text) -> (b,) float32, higher is better.

    As a `Reward` in all else: a subclass is a frozen dataclass with `score`, of at most `batch` texts at a time; it
    adds, subtracts, scales, `.zscored()` and `.cached()`. The text is the answer alone. Raises ValueError for anything
    but lists of strings of one length.
    """

    needs_decode = False
    medium = "texts"

    def score(self, texts: list[str], prompts: list[str]) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Regex(TextReward):
    """1 where the pattern is found in the text, or with `whole` is all of it; else 0. ValueError for a bad pattern.

    Python's syntax: begin with (?i) to ignore case, (?s) to let a dot match a new line.
    """

    pattern: str
    whole: bool = False

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} cannot be compiled: {error}.") from error

    def score(self, texts: list[str], prompts: list[str]) -> Tensor:
        look = re.compile(self.pattern)
        find = look.fullmatch if self.whole else look.search
        return torch.tensor([float(find(text) is not None) for text in texts])


@dataclass(frozen=True)
class ValidJSON(TextReward):
    """1 where the text is one JSON value (RFC 8259: no NaN, no Infinity), spaces around it allowed; else 0."""

    def score(self, texts: list[str], prompts: list[str]) -> Tensor:
        return torch.tensor([float(_is_json(text)) for text in texts])


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return False
    return True


def _refused(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@dataclass(frozen=True)
class Length(TextReward):
    """-|length - target|, in "words" (between spaces) or "characters". ValueError for another unit or a target < 0."""

    target: int
    unit: str = "words"

    def __post_init__(self):
        if self.unit not in UNITS:
            raise unknown("unit", self.unit, UNITS)
        if self.target < 0:
            raise ValueError(f"target {self.target} {self.unit}: expected 0 or more.")

    def score(self, texts: list[str], prompts: list[str]) -> Tensor:
        lengths = [len(text.split()) if self.unit == "words" else len(text) for text in texts]
        return torch.tensor([-abs(length - self.target) for length in lengths])


@dataclass(frozen=True)
class Vader(TextReward):
    """Sentiment by the word list and rules of VADER (Hutto and Gilbert, ICWSM 2014), from -1 to 1, 0 is neutral.

    Raises ImportError where the package vaderSentiment is missing.
    """

    def score(self, texts: list[str], prompts: list[str]) -> Tensor:
        read = _vader().polarity_scores
        return torch.tensor([read(text)["compound"] for text in texts])


@functools.cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import (  # pyright: ignore[reportMissingImports]
            SentimentIntensityAnalyzer,
        )
    except ImportError as error:
        raise ImportError("Vader needs vaderSentiment: pip install 'steer[language]'.") from error
    return SentimentIntensityAnalyzer()


@dataclass(frozen=True)
class Classifier(TextReward):
    """log p(label | text), in (-inf, 0], by a Hugging Face "text-classification" pipeline.

    pipe     sentiment, toxicity, topic, ...: it scores a text against the labels that its model was trained on
    label    one of them
    prompts  classify prompt and text together, as a text alone may not say what it is about

    Raises ValueError for another task and for an unknown label.
    """

    pipe: Any = field(repr=False)
    label: str
    prompts: bool = False
    name: str = field(init=False)

    def __post_init__(self):
        if self.pipe.task != "text-classification":
            raise unknown("pipeline task for a text reward", self.pipe.task, ("text-classification",))
        labels = list(self.pipe.model.config.id2label.values())
        if self.label not in labels:
            raise unknown("label", self.label, labels)
        object.__setattr__(self, "name", getattr(self.pipe.model, "name_or_path", "") or type(self.pipe.model).__name__)

    def score(self, texts: list[str], prompts: list[str]) -> Tensor:
        read = [a + b for a, b in zip(prompts, texts)] if self.prompts else texts
        scores = self.pipe(read, top_k=None, truncation=True)
        chances = [next(one["score"] for one in row if one["label"] == self.label) for row in scores]
        return torch.tensor(chances, dtype=torch.float64).log()
