"""Borders to other libraries: a callable or a Hugging Face pipeline as a Reward, a Reward as a TRL reward function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steer.rewards.base import Reward
from steer.rewards.border import to_pil, to_tensor, unknown

TASKS = ("image-classification", "zero-shot-image-classification")


@dataclass(frozen=True)
class FromCallable(Reward):
    """Any function of pictures as a reward.

    function        (pictures, prompts), or (pictures) with `prompts=False` -> one number a picture: tensor, array, list
    pil             it wants a list of PIL images in place of float (b, 3, h, w) in [0, 1]
    differentiable  it keeps the gradient to the pictures
    batch           the most pictures to give it at once
    """

    function: Callable[..., Any] = field(repr=False)
    prompts: bool = True
    pil: bool = False
    differentiable: bool = False
    batch: int | None = None
    name: str = field(init=False)

    def __post_init__(self):
        if not callable(self.function):
            raise ValueError(f"{self.function!r} cannot be called; expected a function (pictures, prompts) -> scores.")
        if self.pil and self.differentiable:
            raise ValueError("PIL images carry no gradient: use pil=False with differentiable=True.")
        object.__setattr__(self, "name", getattr(self.function, "__name__", type(self.function).__name__))

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        pictures = to_pil(images) if self.pil else images
        return torch.as_tensor(self.function(pictures, prompts) if self.prompts else self.function(pictures))


@dataclass(frozen=True)
class FromPipeline(Reward):
    """Log-probability of a label by a Hugging Face pipeline, in (-inf, 0].

    pipe     an "image-classification" pipeline (the label is one of its classes), or a
             "zero-shot-image-classification" one (the label is any text; None: each picture's own prompt)
    against  the other candidate labels of a zero-shot choice; at least one

    Raises ValueError for other tasks and unknown labels.
    """

    pipe: Any = field(repr=False)
    label: str | None = None
    against: tuple[str, ...] = ()
    name: str = field(init=False)

    def __post_init__(self):
        if self.pipe.task not in TASKS:
            raise unknown("pipeline task for a picture reward", self.pipe.task, TASKS)
        classes = list(self.pipe.model.config.id2label.values())
        if self.pipe.task == TASKS[0] and self.label not in classes:
            raise unknown("label", self.label, classes)
        if self.pipe.task == TASKS[1] and not self.against:
            raise ValueError("a zero-shot choice needs something to choose against: pass against=('something else',).")
        object.__setattr__(self, "name", getattr(self.pipe.model, "name_or_path", "") or type(self.pipe.model).__name__)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        pictures = to_pil(images)
        if self.pipe.task == TASKS[0]:
            found = self.pipe(pictures, top_k=len(self.pipe.model.config.id2label))
            wanted = [self.label] * len(pictures)
        else:
            wanted = prompts if self.label is None else [self.label] * len(pictures)
            found = [self.pipe(x, candidate_labels=self._candidates(own)) for x, own in zip(pictures, wanted)]
        chances = [next(row["score"] for row in rows if row["label"] == own) for rows, own in zip(found, wanted)]
        return torch.tensor(chances, dtype=torch.float64).log()

    def _candidates(self, own: str) -> list[str]:
        return list(dict.fromkeys((own, *self.against)))


def adapt(thing: Any, **options: Any) -> Reward:
    """A Reward from a Reward (itself), a Hugging Face pipeline (`FromPipeline`) or a callable (`FromCallable`).

    options are the fields of that class; ValueError where `thing` is none of the three.
    """
    if isinstance(thing, Reward):
        return thing
    if hasattr(thing, "task") and hasattr(thing, "model"):
        return FromPipeline(thing, **options)
    return FromCallable(thing, **options)


def as_trl(reward: Reward) -> Callable[..., list[float]]:
    """A TRL reward function: (prompts, completions, images=None, **columns) -> list[float].

    The pictures to score are `images` where given, else `completions`: PIL images or tensors (3, h, w) in [0, 1], all
    of one size. Prompts are strings or chats, of which the user's text counts. Other columns are ignored, as TRL asks.
    """

    def function(
        prompts: Sequence[Any], completions: Sequence[Any] = (), images: Any = None, **columns: Any
    ) -> list[float]:
        pictures = to_tensor(completions if images is None else images)
        return reward(pictures, [_text(prompt) for prompt in prompts]).tolist()

    function.__name__ = repr(reward)  # TRL logs a reward under its function's name
    return function


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    contents = [message["content"] for message in prompt if message["role"] == "user"]
    parts = [[{"text": content}] if isinstance(content, str) else content for content in contents]
    return " ".join(part["text"] for content in parts for part in content if "text" in part)
