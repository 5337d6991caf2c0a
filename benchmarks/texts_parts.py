"""What the parts of `benchmarks.texts` share: the model they train, claims as checks, and what a part consists of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.weights_checks import short
from steer.language.tower import tower
from steer.measure import Interval, interval

Row = dict[str, Any]
Value = Tensor | Interval | float


@dataclass(frozen=True, eq=False)
class World:
    """The model under training, as it is at the start of each run, and where data are read and files are kept."""

    model: Any
    tokenizer: Any
    data: Path
    out: Path


class Check(NamedTuple):
    """A claim, and its number.

    value  of the rows of a part: one number, one with its interval, or paired differences whose interval is taken
    bound  whole: all of the interval must be above it (>); else the number must be at least it (>=)
    """

    claim: str
    value: Callable[[list[Row]], Value]
    bound: float = 0.0
    whole: bool = True

    def line(self, rows: list[Row]) -> Row:
        """As a row of a table; met is None where it cannot be said, and `note` says why."""
        line = {"check": self.claim, "number": None}
        rest = {"wanted": f"{'>' if self.whole else '>='} {self.bound:g}"}
        try:
            value = self.value(rows)
            found = interval(value) if isinstance(value, Tensor) else value
        except ValueError as error:
            return {**line, **rest, "met": None, "note": short(error)}
        mean, low = (found.mean, found.low) if isinstance(found, Interval) else (found, found)
        met = low > self.bound if self.whole else mean >= self.bound
        return {**line, "number": found, **rest, "met": met, "note": ""}


class Part(NamedTuple):
    """A study of its own.

    size, small  its dials, and those of a run that only shows that it works
    cells        (size, seeds) -> what is run, in this order
    run          (world, size, **cell) -> what came of it
    checks       claims about the rows
    lines        (rows) -> the table
    """

    size: Any
    small: Any
    cells: Callable[[Any, int], list[Row]]
    run: Callable[..., Row]
    checks: tuple[Check, ...]
    lines: Callable[[list[Row]], list[Row]]


def some(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows whose fields have these values. Raises ValueError where there is none, and with why one failed."""
    found = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    if not found:
        raise ValueError(f"{' '.join(map(str, wanted.values()))} was not run")
    if failed := [row["failed"] for row in found if "failed" in row]:
        raise ValueError(failed[0])
    return found


def of(rows: Sequence[Row], key: str, **wanted: Any) -> Tensor:
    """A measure of some rows, (rows, ...) float64."""
    return torch.tensor([row[key] for row in some(rows, **wanted)], dtype=torch.float64)


def last(model: Any, count: int) -> tuple[str, ...]:
    """Names of the linear layers in the last `count` blocks."""
    inside = {id(module) for block in tower(model).blocks[-count:] for module in block.modules()}
    return tuple(n for n, module in model.named_modules() if id(module) in inside and isinstance(module, nn.Linear))


def cut(tokenizer: Any, text: str, tokens: int) -> str:
    """The first tokens of a text."""
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:tokens])
