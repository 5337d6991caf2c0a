"""Batches of training pictures, drawn through a generator: composed, recoloured, moved, two to a scene."""

from __future__ import annotations

import functools

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..data import (
    COLOURS,
    RELATIONS,
    STYLES,
    caption,
    compose,
    glyphs,
    held_out_colour,
    held_out_pair,
    premultiplied,
    recolour,
    rgba,
    scene,
    scene_caption,
    split,
    straight,
)

PAINTS = torch.tensor(list(COLOURS.values()))
WHITE = torch.ones(3)


def randint(high: int, generator: Generator) -> int:
    """One integer in [0, high)."""
    return int(torch.randint(high, (), generator=generator))


def chance(p: float, generator: Generator) -> bool:
    """True with probability p."""
    return float(torch.rand((), generator=generator)) < p


@functools.cache
def training_glyphs() -> Tensor:
    """(m, 2): style and name of every glyph that may be trained on."""
    return split().nonzero()


def draw_glyphs(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Float RGBA (count, 4, 64, 64) of random training glyphs, and their (style, name) indices (count, 2)."""
    which = training_glyphs()[torch.randint(len(training_glyphs()), (count,), generator=generator)]
    return rgba(glyphs()[0][which[:, 0], which[:, 1]]), which


def place(pictures: Tensor, generator: Generator, smallest: float = 0.7) -> Tensor:
    """RGBA (b, 4, h, w) shrunk by a factor in [smallest, 1] and put anywhere inside the frame."""
    b = len(pictures)
    scale = smallest + (1 - smallest) * torch.rand(b, generator=generator)
    room = (1 - scale)[:, None] * (2 * torch.rand(b, 2, generator=generator) - 1)
    matrix = torch.zeros(b, 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 / scale
    matrix[:, :, 2] = -room / scale[:, None]
    grid = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return straight(F.grid_sample(premultiplied(pictures), grid, padding_mode="zeros", align_corners=False))


def draw_singles(
    count: int, generator: Generator, background: float = 0.15, recoloured: float = 0.08, moved: float = 0.25
) -> tuple[Tensor, list[str]]:
    """Captioned pictures (count, 3, 64, 64) of one object each; the shares say how many are varied in which way.

    A third of the captions name no style, a third begin with an article: what people type.
    """
    pictures, which = draw_glyphs(count, generator)
    names, behind, texts = glyphs()[1], WHITE.repeat(count, 1), []
    placed = place(pictures, generator)
    for k, (style, name) in enumerate(which.tolist()):
        paint = paper = None
        if chance(recoloured, generator):
            paint = draw_colour(names[name], generator)
            pictures[k], placed[k] = recolour(pictures[k], COLOURS[paint]), recolour(placed[k], COLOURS[paint])
        if chance(background, generator):
            paper = list(COLOURS)[randint(len(COLOURS), generator)]
            behind[k] = torch.tensor(COLOURS[paper])
        if chance(moved, generator):
            pictures[k] = placed[k]
        named = None if chance(1 / 3, generator) else STYLES[style]
        texts.append(caption(names[name], named, paper, paint, article=chance(1 / 3, generator)))
    return compose(pictures, behind), texts


def draw_pair(generator: Generator) -> tuple[int, str, int, int]:
    """Style, relation and both names of a scene, as indices but the relation; nothing held out is ever drawn."""
    names = glyphs()[1]
    style, relation = randint(len(STYLES), generator), RELATIONS[randint(len(RELATIONS), generator)]
    while True:
        a, b = randint(len(names), generator), randint(len(names), generator)
        if a != b and split()[style, a] and split()[style, b] and not held_out_pair(names[a], names[b]):
            return style, relation, a, b


def draw_scene(generator: Generator, background: Tensor = WHITE) -> tuple[Tensor, str]:
    """A two-object picture (3, 64, 64) and its caption; held-out glyphs and pairs are never drawn."""
    pictures, names, _ = glyphs()
    style, relation, a, b = draw_pair(generator)
    picture = scene(rgba(pictures[style, a]), rgba(pictures[style, b]), relation, background)
    return picture, scene_caption(names[a], relation, names[b], STYLES[style])


def draw_captioned(count: int, generator: Generator, scenes: float = 0.1) -> tuple[Tensor, list[str]]:
    """Pictures (count, 3, 64, 64) and captions: a share of scenes, the rest single objects."""
    twos = [draw_scene(generator) for _ in range(round(scenes * count))]
    images, texts = draw_singles(count - len(twos), generator)
    return torch.cat([images, *(picture[None] for picture, _ in twos)]), texts + [text for _, text in twos]


def draw_colour(name: str, generator: Generator) -> str:
    """A named colour that may be trained on with `name`."""
    allowed = [colour for colour in COLOURS if not held_out_colour(colour, name)]
    return allowed[randint(len(allowed), generator)]


def draw_plain(count: int, generator: Generator) -> Tensor:
    """Pictures (count, 3, 64, 64) without captions: any glyph, a quarter in any paint, half on any background."""
    pictures, _ = draw_glyphs(count, generator)
    paint = recolour(pictures, torch.rand(count, 3, generator=generator))
    pictures = torch.where(torch.rand(count, 1, 1, 1, generator=generator) < 0.25, paint, pictures)
    behind = torch.rand(count, 3, generator=generator)
    behind = torch.where(torch.rand(count, 1, generator=generator) < 0.5, behind, 1.0)
    return compose(pictures, behind)


def augment(images: Tensor, generator: Generator) -> Tensor:
    """What a scorer must see through: shifts, zooms, turns, a little noise, and every third batch blurred by 2 or 4."""
    images = affine(images, generator)
    if randint(3, generator) == 0:
        coarse = F.avg_pool2d(images, 2 << randint(2, generator))
        images = F.interpolate(coarse, images.shape[-2:], mode="bilinear")
    strength = 0.08 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (images + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def affine(images: Tensor, generator: Generator, shift: float = 0.12, zoom: float = 0.15, turn: float = 0.15) -> Tensor:
    """Random shift (share of the side), log-zoom and turn (radians, deviations) of (b, 3, h, w), edges kept."""
    b = images.shape[0]
    move = shift * (2 * torch.rand(b, 2, 1, generator=generator) - 1)
    angle = turn * torch.randn(b, generator=generator)
    scale = (zoom * torch.randn(b, generator=generator)).exp()
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], dim=1)
    grid = F.affine_grid(torch.cat([matrix, move], dim=2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
