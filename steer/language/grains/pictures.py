"""Attributions to look at: tokens in the colours of their scores, and the parts of an image that matter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from steer.draw import overlay
from steer.language.grains.attribute import Attribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

COLUMNS, SIZE = 96, 10
"""Letters a line of the figure, and their size in points."""
LETTER = (0.602 * SIZE / 72, 1.9 * SIZE / 72)
"""Width and height of a letter of DejaVu Sans Mono with its line, in inches."""


def html(attribution: Attribution) -> str:
    """The prompt as a piece of HTML: red tokens push towards y+, blue ones away, and the score shows under the mouse.

    Full colour is the largest absolute score; tokens that may not be chosen are gray.
    """
    spans = []
    for text, score, share, allowed in _tokens(attribution):
        ink = "" if allowed else "color:#8c959f;"
        style = f"background:{_colour(share)};{ink}padding:1px 0;border-radius:2px"
        spans.append(f'<span style="{style}" title="{score:+.4f}">{escape(text)}</span>' + "<br>" * text.count("↵"))
    head = f"<div><b>{escape(_title(attribution))}</b></div>"
    style = "font-family:monospace;white-space:pre-wrap;line-height:1.7;color:#1f2328;background:#ffffff"
    return f'<div style="{style}">{head}{"".join(spans)}</div>'


def figure(attribution: Attribution) -> Figure:
    """The same as a matplotlib figure; `steer.draw.save_png` writes it."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    placed, x, line = [], 0, 0
    for text, _, share, allowed in _tokens(attribution):
        if x and x + len(text) > COLUMNS:
            x, line = 0, line + 1
        placed.append((x, line, text, share, allowed))
        x, line = (0, line + 1) if "↵" in text else (x + len(text), line)
    size = ((COLUMNS + 2) * LETTER[0], (line + 3) * LETTER[1])
    drawn = Figure(figsize=size, dpi=150)
    axes = drawn.add_axes((0, 0, 1, 1), xlim=(-1, COLUMNS + 1), ylim=(line + 1.5, -1.5))
    axes.axis("off")
    font = {"family": "DejaVu Sans Mono", "size": SIZE, "va": "center"}
    axes.text(0, -1, _title(attribution), **{**font, "family": "DejaVu Sans"})
    for x, line, text, share, allowed in placed:
        axes.add_patch(Rectangle((x, line - 0.42), len(text), 0.84, facecolor=_colour(share), linewidth=0))
        axes.text(x, line, text, color="#1f2328" if allowed else "#8c959f", parse_math=False, **font)
    return drawn


def patches(
    attribution: Attribution,
    image: Image | Tensor,
    grid: tuple[int, int] | None = None,
    towards: Literal["positive", "negative"] = "positive",
    opacity: float = 0.65,
) -> Image:
    """The image under the scores of its tokens that push towards y+ ("positive") or y-: bright where they push hard.

    grid  rows and columns of image tokens; None: a square

    Raises ValueError for an attribution without image tokens, a grid that they do not fill, and another `towards`.
    """
    if towards not in ("positive", "negative"):
        raise ValueError(f"towards={towards!r}: expected 'positive' or 'negative'.")
    scores = attribution.scores[attribution.image]
    side = math.isqrt(len(scores))
    rows, columns = grid or (side, side)
    if not len(scores) or rows * columns != len(scores):
        raise ValueError(
            f"{len(scores)} image tokens do not fill a grid of {rows} x {columns}: pass grid=(rows, columns)."
        )
    heat = (scores if towards == "positive" else -scores).clamp_min(0)
    return overlay(image, heat.reshape(rows, columns), opacity)


def _title(attribution: Attribution) -> str:
    gap = "" if math.isnan(attribution.gap) else f", completeness gap {attribution.gap:.1%}"
    pair = attribution.pair
    return f"{pair.positive.strip()[:30]!r} over {pair.negative.strip()[:30]!r}: {attribution.margin:+.3f} nats{gap}"


def _tokens(attribution: Attribution) -> Iterator[tuple[str, float, float, bool]]:
    """Text, score, share of the largest score in [-1, 1], whether it may be chosen; an image's tokens as one block."""
    most = float(attribution.scores.abs().max()) or 1.0
    scores, image = attribution.scores.tolist(), attribution.image.tolist()
    for k, text in enumerate(attribution.tokens):
        if image[k] and k and image[k - 1]:
            continue
        end = k
        while image[k] and end < len(image) and image[end]:
            end += 1
        score = sum(scores[k:end]) if image[k] else scores[k]
        shown = f"[image, {end - k} tokens]" if image[k] else text.replace("\n", "↵").replace("\t", "⇥")
        yield shown, score, max(-1.0, min(1.0, score / most)), bool(attribution.allowed[k])


def _colour(share: float) -> str:
    """White at 0, red at 1, blue at -1."""
    full = (209, 36, 47) if share > 0 else (9, 105, 218)
    return "#" + "".join(f"{round(255 + abs(share) * 0.75 * (c - 255)):02x}" for c in full)
