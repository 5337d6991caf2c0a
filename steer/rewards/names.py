"""Rewards by name, for the command line."""

from __future__ import annotations

from collections.abc import Callable

from steer.rewards.analytic import Colour, Compressibility, Sharpness
from steer.rewards.base import Reward, Sum
from steer.rewards.border import unknown
from steer.rewards.clip import ClipScore, Judge
from steer.rewards.style import EdgeSimilarity, StyleMatch
from steer.rewards.text import Length, Regex, Vader, ValidJSON


def _quality(text: str) -> Compressibility:
    if not text.isdecimal():
        raise ValueError(f"compressibility:{text}: expected a JPEG quality from 1 to 100, as in compressibility:75.")
    return Compressibility(int(text))


def _length(text: str) -> Length:
    if not text.isdecimal():
        raise ValueError(f"length:{text}: expected how many words are wanted, as in length:20.")
    return Length(int(text))


Names = dict[str, tuple[str, Callable[[], Reward] | None, Callable[[str], Reward] | None]]
# name -> (what follows the colon, "" if nothing may; the reward without it, None if it is needed; the reward with it)
NAMES: Names = {
    "clip": ("an open_clip folder", ClipScore, ClipScore),
    "judge": ("", Judge, None),
    "compressibility": ("a JPEG quality", Compressibility, _quality),
    "sharpness": ("", Sharpness, None),
    "colour": ("a colour", None, Colour),
    "style": ("an art style or a picture's path", None, StyleMatch),
    "edges": ("a picture's path", None, EdgeSimilarity),
}
OF_TEXTS: Names = {
    "vader": ("", Vader, None),
    "json": ("", ValidJSON, None),
    "length": ("a number of words", None, _length),
    "regex": ("a pattern", None, Regex),
}


def named(spec: str, names: Names = NAMES) -> Reward:
    """The reward of a name, or of several: "clip", "colour:red", "clip,sharpness".

    One name is that reward in its own units. Several, joined by commas, are the sum of their z-scores
    (`Reward.zscored`), since their units differ: they choose among the candidates of one prompt and mean nothing by
    themselves. Names: clip[:FOLDER], judge, compressibility[:QUALITY], sharpness, colour:NAME, style:STYLE or
    style:PATH, edges:PATH; of `OF_TEXTS`: vader, json, length:WORDS, regex:PATTERN, which may hold no comma.
    Raises ValueError for an unknown name, with close matches, and for a missing or superfluous argument.
    """
    rewards = [_one(part.strip(), names) for part in spec.split(",")]
    return rewards[0] if len(rewards) == 1 else Sum(tuple(reward.zscored() for reward in rewards))


def _one(part: str, names: Names) -> Reward:
    name, colon, argument = part.partition(":")
    if name not in names:
        raise unknown("reward", name, names)
    expected, plain, with_argument = names[name]
    if argument and with_argument is not None:
        return with_argument(argument)
    if not colon and plain is not None:
        return plain()
    cure = f"{name}:<{expected}>" if expected else name
    raise ValueError(f"reward {part!r}: expected {cure}{', or ' + name + ' alone' if expected and plain else ''}.")
