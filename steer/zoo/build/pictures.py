"""Batches of training pictures, drawn through a generator: composed, recoloured, moved, two to a scene."""

from __future__ import annotations

import functools

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..data import COLOURS, RELATIONS, STYLES, caption, compose, glyphs, held_out_colour, held_out_pair
from ..data import recolour, rgba, scene, scene_caption, split

PAINTS = torch.tensor(list(COLOURS.values()))


def randint(high: int, generator: Generator) -> int:
    """One integer in [0, high)."""
    return int(torch.randint(high, (), generator=generator))


def chance(p: float, generator: Generator) -> bool:
    """True with probability p."""
    return float(torch.rand((), generator=generator)) < p


@functools.cache
def training_glyphs() -> tuple[tuple[int, int], ...]:
    """(style, name) indices of the glyphs that may be trained on."""
    return tuple((int(s), int(n)) for s, n in split().nonzero())


def any_background(generator: Generator) -> Tensor:
    """White (half the time), a named colour with a little jitter, or any colour; (3,)."""
    if chance(0.5, generator):
        return torch.ones(3)
    if chance(0.5, generator):
        jitter = 0.06 * torch.randn(3, generator=generator)
        return (PAINTS[randint(len(PAINTS), generator)] + jitter).clamp(0, 1)
    return torch.rand(3, generator=generator)


def draw_pair(style: int, generator: Generator) -> tuple[int, int]:
    """Two different names with a training glyph in `style` that may be seen together."""
    pictures, names, _ = glyphs()
    while True:
        a, b = randint(len(names), generator), randint(len(names), generator)
        if a != b and split()[style, a] and split()[style, b] and not held_out_pair(names[a], names[b]):
            return a, b


def draw_scene(generator: Generator, background: Tensor | None = None) -> tuple[Tensor, str]:
    """A two-object picture (3, 64, 64) and its caption."""
    pictures, names, _ = glyphs()
    style, relation = randint(len(STYLES), generator), RELATIONS[randint(len(RELATIONS), generator)]
    a, b = draw_pair(style, generator)
    behind = torch.ones(3) if background is None else background
    picture = scene(rgba(pictures[style, a]), rgba(pictures[style, b]), relation, behind)
    return picture, scene_caption(names[a], relation, names[b], STYLES[style])


def draw_colour(name: str, generator: Generator) -> str:
    """A named colour that may be trained on with `name`."""
    allowed = [colour for colour in COLOURS if not held_out_colour(colour, name)]
    return allowed[randint(len(allowed), generator)]


def draw_single(generator: Generator, p_background: float = 0.3, p_recolour: float = 0.15) -> tuple[Tensor, str]:
    """One object (3, 64, 64), perhaps recoloured or on a named background, and its caption."""
    pictures, names, _ = glyphs()
    style, name = training_glyphs()[randint(len(training_glyphs()), generator)]
    picture, colour, background = rgba(pictures[style, name]), None, None
    if chance(p_recolour, generator):
        colour = draw_colour(names[name], generator)
        picture = recolour(picture, COLOURS[colour])
    if chance(p_background, generator):
        background = list(COLOURS)[randint(len(COLOURS), generator)]
    text = caption(names[name], STYLES[style], background, colour)
    return compose(picture, COLOURS.get(background, (1.0, 1.0, 1.0))), text


def draw_plain(generator: Generator) -> Tensor:
    """A picture (3, 64, 64) for models without captions: any training glyph, any colours, one in six a scene."""
    background = any_background(generator)
    if chance(1 / 6, generator):
        return draw_scene(generator, background)[0]
    style, name = training_glyphs()[randint(len(training_glyphs()), generator)]
    picture = rgba(glyphs()[0][style, name])
    if chance(0.25, generator):
        picture = recolour(picture, torch.rand(3, generator=generator))
    return compose(picture, background)


def affine(images: Tensor, generator: Generator, shift: float = 0.12, zoom: float = 0.15, turn: float = 0.15) -> Tensor:
    """Random shift (share of the side), log-zoom and turn (radians, standard deviations) of (b, 3, h, w), edges kept."""
    b = images.shape[0]
    move = shift * (2 * torch.rand(b, 2, 1, generator=generator) - 1)
    angle = turn * torch.randn(b, generator=generator)
    scale = (zoom * torch.randn(b, generator=generator)).exp()
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], dim=1)
    grid = F.affine_grid(torch.cat([matrix, move], dim=2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
