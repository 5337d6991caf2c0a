"""The world of `benchmarks.weights`: a pipeline, and pictures in a style that it has never seen.

The style is a mosaic: a name's picture in noto's style, flat in squares of 4 x 4 pixels. Names are split by a hash:
half are trained on, a quarter chooses among learning rates, a quarter is measured; those of a concept that one method
unlearns are in none.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

import steer
from steer import zoo
from steer.rewards import Compressibility
from steer.training.diffusion import DiffusionTask, Pairs
from steer.training.diffusion.contrast import Contrast
from steer.training.diffusion.denoising import Denoising
from steer.training.handle import Weights
from steer.training.weights.report import snapshot
from steer.zoo.data import STYLES, bucket, caption, captions, compose, glyphs, split

STYLE, SQUARE = "mosaic", 4
CONCEPT = "heart"
PARTS = {"test": (0,), "valid": (1,), "train": (2, 3)}
TOGETHER = 8  # rows in a call of the network


@dataclass(frozen=True)
class Size:
    """What all runs share."""

    model: str
    steps: int
    guidance: float
    train: int
    held_out: int
    budget: int


@dataclass(eq=False)
class Painting(DiffusionTask):
    """A diffusion task in the form that methods of weights ask for: a batch is its size, and the seed that draws it.

    loss    the denoising loss, `TOGETHER` pictures at a level
    logits  of captions for pictures, by their denoising errors: n^2 rows of the network for n <= 4 pictures
    """

    def by(self, model: Any) -> Painting:
        """The same task, with the same ledger, by another network."""
        twin: Any = copy.copy(self)
        twin.denoiser = replace(twin.denoiser, denoise=replace(twin.denoiser.denoise, forward=model))
        return twin

    def on(self, pairs: Pairs) -> Painting:
        """The same task, with the same ledger, on other pictures."""
        twin = copy.copy(self)
        twin.real = pairs
        return twin

    def batch(self, generator: Generator, size: int) -> tuple[int, int]:
        return size, int(torch.randint(2**31, (), generator=generator))

    def loss(self, model: Any, batch: tuple[int, int]) -> Tensor:
        size, seed = batch
        loss = Denoising(None, self.by(model), batch=size, levels=max(1, size // TOGETHER))
        return loss.loss(Generator().manual_seed(seed))[0]

    def logits(self, model: Any, batch: tuple[int, int]) -> Tensor:
        size, seed = batch
        errors = Contrast(None, self.by(model), batch=min(size, 4)).errors(Generator().manual_seed(seed))
        return -4 * errors / errors.detach().diagonal().mean()


@dataclass(frozen=True, eq=False)
class World:
    """A task whose `real` pictures are in the new style and whose `content` is in known ones; and pictures of others.

    names        of `test`
    test, valid  in the new style
    known        of the names of `test`, in styles that the model was trained on
    base         the weights before training
    """

    task: Painting
    names: tuple[str, ...]
    test: Pairs
    valid: Pairs
    known: Pairs
    base: Weights

    @torch.no_grad()
    def restore(self) -> None:
        """The model's own weights, as they were."""
        for name, parameter in self.task.model.named_parameters():
            parameter.copy_(self.base[name])


def names(part: str, count: int) -> list[str]:
    """Names of a part, spread over all that it has; all of them if there are fewer."""
    every = [row["name"] for row in captions() if CONCEPT not in row["name"].split()]
    every = [name for name in every if bucket("weights", name, n=4) in PARTS[part]]
    count = min(count, len(every))
    return [every[k * len(every) // count] for k in range(count)]


def squares(pictures: Tensor) -> Tensor:
    """Pictures (b, 3, h, w) made flat in squares."""
    return F.interpolate(F.avg_pool2d(pictures, SQUARE), scale_factor=SQUARE)


def mosaics(of: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Pictures of names in the new style, with their captions."""
    pictures, every, styles = glyphs()
    return squares(compose(torch.stack([pictures[styles.index("noto"), every.index(name)] for name in of]))), [
        caption(name, STYLE) for name in of
    ]


def familiar(of: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Pictures of names in styles that the model was trained on, in turn, with their captions."""
    pictures, texts = [], []
    for k, name in enumerate(of):
        at = glyphs()[1].index(name)
        trained = split()[:, at].nonzero().flatten().tolist()
        style = trained[k % len(trained)]
        pictures.append(glyphs()[0][style, at])
        texts.append(caption(name, STYLES[style]))
    return compose(torch.stack(pictures)), texts


@functools.cache
def world_of(size: Size) -> World:
    """A pipeline, and the pictures. Raises ValueError for fewer than two pictures of a kind."""
    if min(size.held_out, size.train) < 2:
        raise ValueError(f"{size.held_out} held-out and {size.train} training pictures: expected at least 2 of each.")
    pipe = steer.load(size.model)
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"num_inference_steps": size.steps, "guidance_scale": size.guidance}
    shown, tested = names("train", size.train), names("test", size.held_out)
    pictures = {"real": mosaics(shown), "content": familiar(shown)}
    prompts = [caption(name) for name in shown]
    task = Painting.of(pipe, prompts, Compressibility(75), **pictures, **options, **zoo.CALLS.get(size.model, {}))
    task.recompute = False  # these models are small
    held_out = mosaics(tested), mosaics(names("valid", size.held_out)), familiar(tested)
    test, valid, known = (Pairs.of(pipe, *each) for each in held_out)
    return World(task, tuple(tested), test, valid, known, snapshot(task.model))
