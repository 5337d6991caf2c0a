"""Networks of style transfer: an encoder that tells glyphs apart, AdaIN's decoder on it, and style prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from steer.transfer.losses import content_distance, gram_distance, moment_distance, total_variation
from steer.transfer.net import WIDTHS, AdaIN, Decoder, Encoder
from steer.transfer.prediction import Arbitrary
from steer.transfer.statistics import adain

from ..data import STYLES, compose, glyphs, split
from .files import save_half, write_folder
from .fit import Fit, Loss, fit, restored, seeded
from .pictures import augment, draw_glyphs, place, randint

BATCH, SEED = 64, 5
PAIRS = 8
SAMPLE = 256  # pictures that the encoder is normalised on
STYLE_WEIGHT = 10.0  # of AdaIN's moments, as in the paper
PIXEL_WEIGHT = 50.0  # of the mean square error of pixels
GRAM_WEIGHT, SMOOTH_WEIGHT = 5.0, 0.05


class Features(nn.Module):
    """An encoder with a head that tells name and style: two more convolutions, and the mean over space.

    A decoder beside it draws the picture again: what tells glyphs apart does not hold all that a picture is.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS):
        super().__init__()
        self.encoder, self.decoder, c = Encoder(widths), Decoder(widths), widths[-1]
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, 2, 1))
        self.style, self.name = nn.Linear(c, len(STYLES)), nn.Linear(c, len(glyphs()[1]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of style and name, and the first `PAIRS` pictures drawn again."""
        code = self.encoder(images)[-1]
        x = self.head(code).relu().mean((2, 3))
        return self.style(x).float(), self.name(x).float(), self.decoder(code[:PAIRS]).float()


def draw(count: int, generator: Generator, styles: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Training glyphs (count, 3, 64, 64) of some art styles, and their (style, name); half on white, half moved."""
    pictures, which = draw_glyphs(count, generator)
    while styles is not None and not (wanted := torch.isin(which[:, 0], torch.tensor(styles))).all():
        fresh, new = draw_glyphs(count, generator)
        pictures = torch.where(wanted[:, None, None, None], pictures, fresh)
        which = torch.where(wanted[:, None], which, new)
    placed = place(pictures, generator)
    pictures = torch.where(torch.rand(count, 1, 1, 1, generator=generator) < 0.5, pictures, placed)
    behind = torch.rand(count, 3, generator=generator)
    return compose(pictures, behind.where(torch.rand(count, 1, generator=generator) < 0.5, 1.0)), which


def recognition(model: nn.Module, generator: Generator, progress: float) -> Tensor:
    """Cross-entropies of style and name, and the error of pixels; every third batch is augmented."""
    images, which = draw(BATCH, generator)
    images = augment(images, generator) if randint(3, generator) == 0 else images
    style, name, drawn = model(images)
    told = F.cross_entropy(style, which[:, 0]) + F.cross_entropy(name, which[:, 1], label_smoothing=0.05)
    return told + PIXEL_WEIGHT * F.mse_loss(drawn, images[:PAIRS])


def reconstruction(encoder: Encoder, styles: Sequence[int] | None = None) -> Loss:
    """AdaIN's loss (arXiv 1703.06868), for its decoder: |f(g(t)) - t|^2 + 10 times the moments' distance.

    And, as the identity loss of later networks (arXiv 1812.02342), 50 |g(f(c)) - c|^2 of pixels: features of a small
    network are blind to colour noise.
    """

    def loss(decoder: nn.Module, generator: Generator, progress: float) -> Tensor:
        (content, _), (style, _) = (draw(PAIRS, generator, styles) for _ in range(2))
        with torch.no_grad():
            code, wanted = encoder(content)[-1], encoder(style)
            target = adain(code, wanted[-1])
        made, same = decoder(torch.cat([target, code])).float().chunk(2)
        found = encoder(made)
        apart = content_distance(found, [target]) + STYLE_WEIGHT * moment_distance(found, wanted)
        return apart.mean() + PIXEL_WEIGHT * F.mse_loss(same, content)

    return loss


def stylization(encoder: Encoder, styles: Sequence[int] | None = None) -> Loss:
    """The loss of arXiv 1705.06830 by the encoder's features: content at relu3_1, Grams at all, total variation.

    `styles` keeps the pictures of contents and styles to some of `STYLES`, by index.
    """

    def loss(model: nn.Module, generator: Generator, progress: float) -> Tensor:
        (content, _), (style, _) = (draw(PAIRS, generator, styles) for _ in range(2))
        made = model(content, [style], [1.0]).float()
        with torch.no_grad():
            kept, wanted = encoder(content), encoder(style)
        found = encoder(made)
        apart = content_distance(found, kept) + GRAM_WEIGHT * gram_distance(found, wanted)
        return (apart + SMOOTH_WEIGHT * total_variation(made)).mean()

    return loss


def train_features(cache: Path, minutes: float) -> None:
    """Train (or finish training) the encoder; it is shipped as a part of emoji-adain."""
    fit("features", features(), recognition, Fit(minutes=minutes, lr=1e-3, seed=SEED), cache)


def features() -> Features:
    """A new encoder and head with fixed initial weights."""
    with seeded(SEED):
        return Features()


def encoder_of(cache: Path) -> Encoder:
    """The frozen encoder of the finished stage "features", normalised on the training pictures.

    Raises ValueError when that has not been run.
    """
    encoder = restored("features", features(), cache).encoder
    pictures = glyphs()[0][split()]
    encoder.normalise(compose(pictures[:: len(pictures) // SAMPLE]))
    return encoder.eval().requires_grad_(False)


def train_adain(cache: Path, minutes: float) -> None:
    """Train (or finish training) AdaIN's decoder, and write it with its encoder to the package."""
    with seeded(SEED):
        net = AdaIN()
    net.encoder = encoder_of(cache)
    net.decoder = fit("emoji-adain", net.decoder, reconstruction(net.encoder), Fit(minutes=minutes, seed=SEED), cache)
    write_folder("emoji-adain", lambda folder: save_half(net, folder / "model.safetensors"))


def train_arbitrary(cache: Path, minutes: float) -> None:
    """Train (or finish training) the style prediction network and write it to the package."""
    net = fit("emoji-arbitrary", arbitrary(), stylization(encoder_of(cache)), Fit(minutes=minutes, seed=SEED), cache)
    write_folder("emoji-arbitrary", lambda folder: save_half(net, folder / "model.safetensors"))


def arbitrary() -> Arbitrary:
    """A new style prediction network with fixed initial weights."""
    with seeded(SEED):
        return Arbitrary()
