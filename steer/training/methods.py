"""One table of all methods: those for diffusion models, those about weights, and those about texts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from steer.rewards import Compressibility, Reward
from steer.rewards.border import unknown
from steer.rewards.jpeg import SmoothCompressibility
from steer.training.diffusion.direct import DirectReward
from steer.training.diffusion.methods import METHODS as OF_DIFFUSION
from steer.training.method import Method
from steer.training.text.methods import METHODS as OF_TEXT
from steer.training.weights.methods import METHODS as OF_WEIGHTS

TABLES: Mapping[str, Mapping[str, Callable[..., Method]]] = {
    "diffusion": OF_DIFFUSION,
    "weights": OF_WEIGHTS,
    "text": OF_TEXT,
}


class Row(NamedTuple):
    """A line of the table.

    kind   diffusion: on a DiffusionTask; text: on a TextTask; weights: on any task with a batch and a loss
    about  the first sentence of what it is
    dials  its arguments with their defaults
    make   (dials) -> Method
    """

    name: str
    kind: str
    about: str
    dials: dict[str, Any]
    make: Callable[..., Method]

    @property
    def paper(self) -> str:
        """arXiv number."""
        return self.make().paper


def _rows() -> dict[str, Row]:
    found: dict[str, Row] = {}
    for kind, table in TABLES.items():
        for name, make in table.items():
            if name in found:
                raise ValueError(f"two methods are called {name!r}: of {found[name].kind} and of {kind}.")
            about = " ".join((inspect.getdoc(make) or "").split("\n\n")[0].split())
            dials = {key: one.default for key, one in inspect.signature(make).parameters.items()}
            found[name] = Row(name, kind, about, dials, make)
    return found


METHODS = _rows()
"""name -> its line."""


def method(name: str, **dials: Any) -> Method:
    """A method of the table with these dials in place of its defaults.

    Raises ValueError for an unknown method or dial, with close matches, and for a value of another type.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    row = METHODS[name]
    hints = get_type_hints(row.make)
    for dial, value in dials.items():
        if dial not in row.dials:
            raise unknown(f"dial of {name}", dial, row.dials)
        if not _fits(value, hints[dial]):
            raise ValueError(f"dial {dial} = {value!r} of {name}: expected {_said(hints[dial])}.")
    return replace(row.make(**dials), dials={**row.dials, **dials})


def followed(method: Method, reward: Reward) -> Reward:
    """What a method is trained by: a reward, or a smooth stand-in where it has no gradient and the method needs one."""
    direct = any(getattr(phase.objective, "func", None) is DirectReward for phase in method.phases)
    return SmoothCompressibility(reward.quality) if direct and isinstance(reward, Compressibility) else reward


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; a whole number is a float too, and True is no number."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in args)
    if origin in (tuple, Sequence):
        return isinstance(value, (tuple, list)) and all(_fits(one, args[0]) for one in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _said(hint: Any) -> str:
    args = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, args))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_said, args))
    if args:
        return f"several {_said(args[0])}"
    return "None" if hint is NoneType else hint.__name__
