"""A grid of pictures with labels and captions."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from steer.rewards.border import to_pil

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

INK, SOFT, FRAME, PAPER = "#1f2328", "#59636e", "#d1242f", "#ffffff"
GAP, MARGIN, SMALLEST = 8, 16, 112


def contact_sheet(
    images: Sequence[Image | Tensor],
    columns: int | None = None,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    captions: Sequence[str] = (),
    framed: Collection[int] = (),
) -> Image:
    """Pictures row by row on one sheet, white and ready to save.

    images         PIL pictures or float tensors (3, h, w) in [0, 1]; small ones are enlarged by a whole factor
    columns        pictures a row; default: all in one row
    row_labels     one a row, at its left; may have several lines
    column_labels  one a column, above it; an empty one lets the label before it reach further
    captions       one a picture, under it: a score
    framed         numbers of the pictures to frame: the winners

    Raises ValueError without pictures, and where there are not as many labels as rows, columns or pictures.
    """
    if not len(images):
        raise ValueError("contact_sheet: no pictures came; expected at least one.")
    columns = len(images) if columns is None else columns
    if columns < 1:
        raise ValueError(f"contact_sheet: columns = {columns}; expected at least 1.")
    rows = math.ceil(len(images) / columns)
    expected = (
        ("row_labels", row_labels, rows),
        ("column_labels", column_labels, columns),
        ("captions", captions, len(images)),
    )
    for name, labels, count in expected:
        if labels and len(labels) != count:
            raise ValueError(f"contact_sheet: {len(labels)} {name} came; expected {count}, or none.")
    tiles = [_tile(image) for image in images]
    layout = _Layout.of(tiles, columns, row_labels, column_labels, bool(captions))
    return _paint(layout, tiles, row_labels, column_labels, captions, framed)


@dataclass(frozen=True)
class _Layout:
    """Where things are, in pixels."""

    columns: int
    rows: int
    tile: tuple[int, int]
    left: int
    heads: tuple[tuple[int, int, str], ...]  # (column, width, wrapped text)
    top: int
    under: int

    @classmethod
    def of(cls, tiles: list[Image], columns: int, row_labels, column_labels, captioned: bool) -> _Layout:
        tile = max(t.width for t in tiles), max(t.height for t in tiles)
        left = MARGIN + (max(_size(label, 15)[0] for label in row_labels) + 2 * GAP if row_labels else 0)
        heads = _heads(column_labels, tile[0])
        top = MARGIN + max((_size(text, 15)[1] + GAP for _, _, text in heads), default=0)
        return cls(columns, math.ceil(len(tiles) / columns), tile, left, heads, top, 24 if captioned else 0)

    @property
    def size(self) -> tuple[int, int]:
        _, y = self.corner(self.columns * self.rows)
        return self.left + self.columns * (self.tile[0] + GAP) - GAP + MARGIN, y - GAP + MARGIN

    def corner(self, k: int) -> tuple[int, int]:
        """The upper left corner of picture k."""
        row, column = divmod(k, self.columns)
        return self.left + column * (self.tile[0] + GAP), self.top + row * (self.tile[1] + self.under + GAP)


def _paint(layout: _Layout, tiles, row_labels, column_labels, captions, framed) -> Image:
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", layout.size, PAPER)
    pen = ImageDraw.Draw(sheet)
    width, height = layout.tile
    for column, _, text in layout.heads:
        _write(pen, (layout.corner(column)[0], layout.top - GAP), text, 15, INK, "ld")
    for row, label in enumerate(row_labels):
        y = layout.corner(row * layout.columns)[1] + height / 2
        _write(pen, (layout.left - 2 * GAP, y), label, 15, INK, "rm")
    for k, tile in enumerate(tiles):
        x, y = layout.corner(k)
        sheet.paste(tile, (x + (width - tile.width) // 2, y + (height - tile.height) // 2))
        if k in framed:
            pen.rectangle((x - 4, y - 4, x + width + 3, y + height + 3), outline=FRAME, width=3)
        if captions:
            _write(pen, (x + width / 2, y + height + 6), captions[k], 13, FRAME if k in framed else SOFT, "ma")
    return sheet


def _tile(image: Image | Tensor) -> Image:
    from PIL.Image import Resampling

    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f"contact_sheet: a picture has shape {tuple(image.shape)}; expected (3, h, w).")
        image = to_pil(image[None])[0]
    factor = math.ceil(SMALLEST / max(image.size))
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Resampling.NEAREST)


def _heads(labels: Sequence[str], width: int) -> tuple[tuple[int, int, str], ...]:
    """Column labels that reach to the next one that is not empty, broken into lines that fit."""
    starts = [k for k, label in enumerate(labels) if label]
    spans = [(k, (after - k) * (width + GAP) - GAP) for k, after in zip(starts, [*starts[1:], len(labels)])]
    return tuple((k, span, _wrapped(labels[k], span)) for k, span in spans)


def _wrapped(text: str, width: int) -> str:
    """Text broken between words so that no line is wider than `width` pixels, words allowing."""
    lines, font = [""], _font(15)
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _write(pen: ImageDraw, at: tuple[float, float], text: str, size: int, colour: str, anchor: str) -> None:
    """Text of one or more lines; anchor as in PIL: l m r, then a(scender) m d(escender), for the block as a whole."""
    height = _size(text, size)[1]
    top = at[1] - {"a": 0, "m": height / 2, "d": height}[anchor[1]]
    for k, line in enumerate(text.split("\n")):
        pen.text((at[0], top + k * size * 1.3), line, fill=colour, font=_font(size), anchor=f"{anchor[0]}a")


def _size(text: str, size: int) -> tuple[int, int]:
    lines = text.split("\n")
    return math.ceil(max(_font(size).getlength(line) for line in lines)), math.ceil(len(lines) * size * 1.3)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)
