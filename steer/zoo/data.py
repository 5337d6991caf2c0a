"""The shipped pictures: about 300 named emoji in four art styles, with exact mattes, captions and fixed splits.

Caption grammar, in full (`<style>` is one of `STYLES`, `<colour>` one of `COLOURS`):

    [a] <name>[, <style> style][, on a <colour> background]
    a <colour> <name>[, <style> style][, on a <colour> background]
    <A> to the left of <B>, <style> style
    <A> above <B>, <style> style
    <A> and <B>, <style> style

Splits are hashes of the names, so they never change when names are added: about one name in eight has exactly one style
that no model was trained on; one pair of names in eight and one colour-name pair in eight were never shown together.
"""

from __future__ import annotations

import functools
import json
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
NAMES = Path(__file__).parent / "names.txt"
CELL, COLUMNS = 64, 20
STYLES = ("noto", "twemoji", "fluent-flat", "fluent")
COLOURS = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.98, 0.55, 0.10),
    "yellow": (0.99, 0.85, 0.15),
    "green": (0.20, 0.65, 0.25),
    "blue": (0.15, 0.40, 0.90),
    "purple": (0.50, 0.20, 0.70),
    "pink": (0.98, 0.55, 0.75),
    "brown": (0.48, 0.30, 0.18),
    "gray": (0.55, 0.55, 0.58),
    "black": (0.06, 0.06, 0.08),
}
RELATIONS = ("to the left of", "above", "and")


def bucket(*words: str, n: int) -> int:
    """A stable hash of `words` in [0, n): the same on every machine and in every Python."""
    return int.from_bytes(blake2b("|".join(words).encode(), digest_size=8).digest(), "big") % n


def held_out_style(name: str) -> str | None:
    """The one style in which `name` is in no training set, or None for about seven names in eight."""
    return STYLES[bucket("which", name, n=len(STYLES))] if bucket("style", name, n=8) == 0 else None


def held_out_pair(a: str, b: str) -> bool:
    """True for the one unordered pair of names in eight that is never trained on together."""
    return bucket("pair", *sorted((a, b)), n=8) == 0


def held_out_colour(colour: str, name: str) -> bool:
    """True for the one (colour, name) in eight that is never trained on."""
    return bucket("colour", colour, name, n=8) == 0


@functools.cache
def captions() -> tuple[dict, ...]:
    """The rows of captions.jsonl: name, hexcode, group, tags, held_out_style."""
    return tuple(json.loads(line) for line in (DATA / "captions.jsonl").read_text().splitlines())


@functools.cache
def glyphs() -> tuple[Tensor, tuple[str, ...], tuple[str, ...]]:
    """All pictures, names and styles: uint8 (styles, names, 4, 64, 64) straight (not premultiplied) RGBA."""
    import numpy as np
    from PIL import Image

    names = tuple(row["name"] for row in captions())
    sheets = []
    for style in STYLES:
        atlas = torch.from_numpy(np.array(Image.open(DATA / f"{style}.png").convert("RGBA")))
        cells = atlas.unfold(0, CELL, CELL).unfold(1, CELL, CELL)  # (rows, columns, 4, 64, 64)
        sheets.append(cells.flatten(0, 1)[: len(names)])
    return torch.stack(sheets).contiguous(), names, STYLES


@functools.cache
def split() -> Tensor:
    """bool (styles, names): True where the glyph belongs to the training set."""
    return torch.tensor([[row["held_out_style"] != style for row in captions()] for style in STYLES])


def caption(
    name: str,
    style: str | None = None,
    background: str | None = None,
    colour: str | None = None,
    article: bool = False,
) -> str:
    """The caption of one object, with the optional parts of the grammar."""
    text = f"a {colour} {name}" if colour else f"a {name}" if article else name
    text = f"{text}, {style} style" if style else text
    return f"{text}, on a {background} background" if background else text


def scene_caption(a: str, relation: str, b: str, style: str) -> str:
    """The caption of a two-object scene; `relation` is one of `RELATIONS`."""
    return f"{a} {relation} {b}, {style} style"


def seen(count: int, style: str | None = None) -> tuple[Tensor, list[str]]:
    """Training pictures on white, float (count, 3, 64, 64), spread evenly over all styles or over one; with captions.

    As many as there are, if there are fewer.
    """
    places = (split() & torch.tensor([[style in (None, one)] for one in STYLES])).nonzero()
    places = places[torch.linspace(0, len(places) - 1, min(count, len(places))).round().long()]
    every, names, _ = glyphs()
    texts = [caption(names[k], STYLES[one], article=True) for one, k in places.tolist()]
    return compose(every[places[:, 0], places[:, 1]]), texts


def rgba(glyph: Tensor) -> Tensor:
    """uint8 RGBA -> float RGBA in [0, 1]."""
    return glyph.float() / 255


def premultiplied(picture: Tensor) -> Tensor:
    """Colour times alpha: what may be averaged or resampled without a dark fringe."""
    return torch.cat([picture[..., :3, :, :] * picture[..., 3:, :, :], picture[..., 3:, :, :]], dim=-3)


def straight(picture: Tensor) -> Tensor:
    """The inverse of `premultiplied`."""
    return torch.cat([picture[..., :3, :, :] / picture[..., 3:, :, :].clamp(min=1e-4), picture[..., 3:, :, :]], dim=-3)


def compose(picture: Tensor, background: Tensor | tuple[float, ...] = (1.0, 1.0, 1.0)) -> Tensor:
    """Lay RGBA over a background: alpha * rgb + (1 - alpha) * background.

    `picture` (..., 4, h, w), uint8 or float in [0, 1]; `background` a colour (3,), colours (..., 3) or pictures
    (..., 3, h, w). Returns float (..., 3, h, w) in [0, 1].
    """
    picture = rgba(picture) if picture.dtype == torch.uint8 else picture
    behind = torch.as_tensor(background, dtype=picture.dtype)
    if behind.dim() < 3 or behind.shape[-2:] != picture.shape[-2:]:
        behind = behind[..., None, None]
    colour, alpha = picture[..., :3, :, :], picture[..., 3:, :, :]
    return alpha * colour + (1 - alpha) * behind


def recolour(picture: Tensor, colour: Tensor | tuple[float, ...]) -> Tensor:
    """Repaint float RGBA (..., 4, h, w) in shades of `colour` (..., 3): black -> colour at luminance 0.6 -> white."""
    paint = torch.as_tensor(colour, dtype=picture.dtype)[..., None, None]
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=picture.dtype)[:, None, None]
    light = (picture[..., :3, :, :] * weights).sum(-3, keepdim=True)
    shade, glow = (light / 0.6).clamp(max=1), ((light - 0.6) / 0.4).clamp(min=0)
    return torch.cat([(paint * shade) * (1 - 0.85 * glow) + 0.85 * glow, picture[..., 3:, :, :]], dim=-3)


def scene(a: Tensor, b: Tensor, relation: str, background: Tensor | tuple[float, ...] = (1.0, 1.0, 1.0)) -> Tensor:
    """Two float RGBA objects (4, 64, 64) at half size on one float (3, 64, 64) picture.

    "to the left of": a left, b right; "above": a on top; "and": side by side, as "to the left of".
    """
    if relation not in RELATIONS:
        raise ValueError(f"relation {relation!r} is not one of {RELATIONS}")
    small = straight(torch.nn.functional.interpolate(premultiplied(torch.stack([a, b])), scale_factor=0.5, mode="area"))
    canvas = torch.zeros(4, CELL, CELL, dtype=small.dtype)
    half, quarter = CELL // 2, CELL // 4
    for k in range(2):
        top, left = (k * half, quarter) if relation == "above" else (quarter, k * half)
        canvas[:, top : top + half, left : left + half] = small[k]
    return compose(canvas, background)
