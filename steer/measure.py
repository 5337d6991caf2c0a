"""What results are judged by: never by the reward that was optimised alone.

Pictures are (b, 3, h, w), float in [0, 1]. All features are the unit embeddings of `emoji-judge`, which no search sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steer.rewards import Judge, Reward
from steer.zoo import style_net
from steer.zoo.data import STYLES


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(values: Tensor, seed: int = 0) -> Interval:
    """Mean of values (prompts, ...) with a percentile bootstrap interval over the prompts.

    For a paired comparison pass the differences. Raises ValueError unless there are at least two prompts.
    """
    from scipy.stats import bootstrap

    means = values.double().flatten(1).mean(1).numpy() if values.dim() > 1 else values.double().numpy()
    if len(means) < 2:
        raise ValueError(f"{len(means)} prompt: an interval over prompts needs at least two.")
    found = bootstrap((means,), lambda x, axis: x.mean(axis), method="percentile", n_resamples=4000, rng=seed)
    return Interval(float(means.mean()), *map(float, found.confidence_interval))


@torch.no_grad()
def diversity(pictures: Tensor) -> Tensor:
    """DIV (prompts,) of pictures (prompts, k, 3, h, w): mean pairwise 1 - cos of a prompt's k >= 2 pictures."""
    k = pictures.shape[1]
    if k < 2:
        raise ValueError(f"diversity among {k} picture a prompt: expected at least 2.")
    features = Judge().embed_images(pictures.flatten(0, 1)).unflatten(0, (-1, k))
    similar = features @ features.mT
    return 1 - (similar.sum((1, 2)) - k) / (k * (k - 1))


@torch.no_grad()
def name_rank(images: Tensor, names: Sequence[str], among: Sequence[str], reward: Reward | None = None) -> Tensor:
    """Rank (b,), 0 is best, of the right name among all names, by cos to the captions "<name>"."""
    scorer = Judge() if reward is None else reward
    scores = scorer.embed_images(images) @ scorer.embed_texts(list(among)).T
    right = torch.tensor([list(among).index(name) for name in names])
    return (scores > scores.gather(1, right[:, None])).sum(1)


@torch.no_grad()
def style_accuracy(images: Tensor, styles: Sequence[str]) -> float:
    """Share of pictures that `emoji-style` takes for the style that was asked for."""
    wanted = torch.tensor([STYLES.index(style) for style in styles])
    return float((style_net()(images).argmax(-1) == wanted).float().mean())


@torch.no_grad()
def kid(images: Tensor, real: Tensor, paired: bool = False) -> float:
    """Kernel distance (arXiv 1801.01401), unbiased MMD^2 with kernel (x.y + 1)^3 on judge embeddings, times 1000.

    Near 0, below it too, when both sets have one distribution. The sets may differ in size. paired: rows of one number
    have one caption; they are then alike beyond their distributions, and are not compared with each other, as no
    picture is with itself. Raises ValueError for a set of fewer than two pictures, and for pairs of unequal sets.
    """
    if min(len(images), len(real)) < 2 or (paired and len(images) != len(real)):
        sizes = f"{len(images)} pictures against {len(real)}"
        raise ValueError(f"{sizes}: expected at least two of each{', and as many of both' * paired}.")
    x, y = (Judge().embed_images(pictures).double() for pictures in (images, real))
    between = _among(x, y) if paired else _kernel(x, y).mean()
    return 1000 * float(_among(x, x) + _among(y, y) - 2 * between)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T + 1) ** 3


def _among(x: Tensor, y: Tensor) -> Tensor:
    """Mean kernel of all pairs of rows of different numbers."""
    k = _kernel(x, y)
    return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))
