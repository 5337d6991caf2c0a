"""emoji-style: a small convolutional classifier of the four art styles; its features give Gram distances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..data import compose
from ..style import StyleNet
from .files import save_half, write_folder
from .fit import Fit, fit, seeded
from .pictures import augment, draw_glyphs, place, randint

BATCH = 64


def loss(model: Any, generator: Generator, progress: float) -> Tensor:
    """Cross-entropy of the style of glyphs on any background, half of them moved; every third batch is augmented."""
    pictures, which = draw_glyphs(BATCH, generator)
    half = BATCH // 2
    pictures = torch.cat([pictures[:half], place(pictures[half:], generator)])
    plain = randint(2, generator) == 0
    behind = torch.ones(BATCH, 3) if plain else torch.rand(BATCH, 3, generator=generator)
    images = compose(pictures, behind)
    logits = model(augment(images, generator) if randint(3, generator) == 0 else images)
    return F.cross_entropy(logits.float(), which[:, 0], label_smoothing=0.02)


def train(cache: Path, minutes: float) -> None:
    """Train (or finish training) the classifier and write it to the package."""
    with seeded(3):
        start = StyleNet()
    model = fit("emoji-style", start, loss, Fit(minutes=minutes, lr=2e-3, seed=3), cache)
    write_folder("emoji-style", lambda folder: save_half(model, folder / "model.safetensors"))
