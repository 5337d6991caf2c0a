"""Pictures that a command is given: files, or emoji by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Given:
    """A picture that was asked for.

    name     as it was given
    pixels   (3, h, w) in [0, 1]
    caption  what it shows, "" if that is not known
    matte    (1, h, w), 1 where the object is; None if that is not known
    """

    name: str
    pixels: Tensor
    caption: str = ""
    matte: Tensor | None = None

    def at(self, size: tuple[int, int]) -> Tensor:
        """(3, h, w) at the size (height, width) of a pipeline's pictures. Raises ValueError for another shape."""
        return fitted(self.pixels, size, self.name)


def picture(name: str) -> Given:
    """The picture of a name: the path of a file, or STYLE:NAME for a shipped emoji on white, as noto:fox.

    Raises FileNotFoundError for a path where nothing is, and ValueError for a file that is no picture, and for an
    unknown style or emoji, with close matches.
    """
    from steer.rewards.reference import picture as opened

    if Path(name).is_file():
        return Given(name, opened(name).pixels[0])
    style, colon, emoji = name.partition(":")
    if not colon or "/" in style:
        raise FileNotFoundError(f"no picture {name!r}: give the path of a file, or STYLE:NAME as in noto:fox.")
    return _emoji(name, style.strip().lower(), emoji.strip().lower())


def _emoji(name: str, style: str, emoji: str) -> Given:
    from steer.rewards.border import unknown
    from steer.zoo.data import STYLES, caption, compose, glyphs, rgba

    every, names, _ = glyphs()
    if style not in STYLES:
        raise unknown("style", style, STYLES, f"Or is {name!r} a file? There is none.")
    known = {one.lower(): k for k, one in enumerate(names)}
    if emoji not in known:
        near = _near(emoji, known)
        raise ValueError(
            f"no emoji is called {emoji!r}{f'; did you mean {near}?' if near else '.'} All {len(names)} names are in "
            "steer.zoo.data.captions()."
        )
    glyph = rgba(every[STYLES.index(style), known[emoji]])
    return Given(name, compose(glyph), caption(names[known[emoji]], style), glyph[3:])


def _near(emoji: str, known: Sequence[str] | dict[str, int]) -> str:
    """Names that hold the word, or else those of close spelling."""
    from difflib import get_close_matches

    holding = [one for one in known if emoji and emoji in one.split()]
    return " or ".join(repr(one) for one in (holding or get_close_matches(emoji, known))[:4])


def mask(name: str, size: tuple[int, int]) -> Tensor:
    """(h, w) of 0 and 1 at a size (height, width): 1 where a file is bright, or where an emoji is.

    Raises as `picture` and `Given.at` do, and ValueError for a mask with nothing in it.
    """
    given = picture(name)
    gray = given.pixels.mean(0, keepdim=True) if given.matte is None else given.matte
    found = (fitted(gray, size, name)[0] > 0.5).float()
    if not found.any():
        raise ValueError(f"the mask {name} is dark everywhere: paint white where it is to act.")
    return found


def fitted(pixels: Tensor, size: tuple[int, int], name: str) -> Tensor:
    """Pixels (c, h, w) at (height, width). Raises ValueError where that would change their proportions."""
    from steer.rewards.reference import resized

    height, width = pixels.shape[-2:]
    if not math.isclose(height * size[1], width * size[0], rel_tol=0.02):
        raise ValueError(
            f"{name} has {width} x {height} pixels, and the pipeline makes {size[1]} x {size[0]}; crop it to these "
            "proportions."
        )
    return resized(pixels[None], size)[0].clamp(0, 1)
