"""The runs of `benchmarks.weights`, those at the best learning rates, and claims about them as numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steer import measure

Row = dict[str, Any]
BASE = "base"


class Found:
    """The rows of a results file: of each method and seed the one whose learning rate is best by the validating names.

    Learnt and forgot are paired, picture by picture, in per cent of the mean loss before training.
    """

    def __init__(self, rows: Iterable[Row]):
        self.rows = [row for row in rows]
        (self.base,) = [row for row in self.rows if row["method"] == BASE]

    def tried(self, name: str) -> list[Row]:
        """Runs that ended well. Raises ValueError, with what went wrong, where there is none."""
        every = [row for row in self.rows if row["method"] == name]
        good = [row for row in every if "failed" not in row and math.isfinite(sum(row["valid"]))]
        if not good:
            raise ValueError(every[0].get("failed", "the loss is not finite") if every else f"{name} was not run")
        return good

    def chosen(self, name: str, like: str | None = None) -> list[Row]:
        """A run a seed: the best, or the one that learnt most nearly what the best run of another method did."""
        good, found = self.tried(name), []
        for seed in sorted({row["seed"] for row in good}):
            mine = [row for row in good if row["seed"] == seed]
            if like is None:
                found.append(min(mine, key=lambda row: sum(row["valid"])))
            else:
                goal = self.learnt(like).mean()
                found.append(min(mine, key=lambda row: abs(self.gain(row).mean() - goal)))
        return found

    def of(self, name: str, key: str, like: str | None = None) -> Tensor:
        """A measure, a mean over seeds. Raises ValueError where the method was not run."""
        return torch.tensor([row[key] for row in self.chosen(name, like)], dtype=torch.float64).mean(0)

    def learnt(self, name: str, key: str = "new") -> Tensor:
        return torch.stack([self.gain(row, key) for row in self.chosen(name)]).mean(0)

    def forgot(self, name: str, like: str | None = None) -> Tensor:
        before = torch.tensor(self.base["known"], dtype=torch.float64)
        return 100 * (self.of(name, "known", like) - before) / before.mean()

    def gained(self, name: str, key: str) -> Tensor:
        """A measure of pictures beside that before training."""
        return self.of(name, key) - torch.tensor(self.base[key], dtype=torch.float64)

    def gain(self, row: Row, key: str = "new") -> Tensor:
        """What a run learnt; key `start`: by what its method does before the first step."""
        before = torch.tensor(self.base["new"], dtype=torch.float64)
        return 100 * (before - torch.tensor(row[key], dtype=torch.float64)) / before.mean()


class Check(NamedTuple):
    """A claim of a paper, and its number.

    value  one, or paired differences whose interval is taken
    bound  the claim is met if the whole interval is above it; `below`: below it
    """

    method: str
    claim: str
    value: Callable[[Found], Tensor]
    bound: float = 0.0
    below: bool = False

    def line(self, found: Found) -> Row:
        """The check as a row of a table; met is None where it cannot be said, and `note` says why."""
        line = {"method": self.method, "claim": self.claim}
        wanted = f"{'<' if self.below else '>'} {self.bound:g}"
        try:
            number = spread(self.value(found))
        except ValueError as error:
            return {**line, "number": None, "wanted": wanted, "met": None, "note": short(error)}
        low, high = number[1:] if isinstance(number, measure.Interval) else (number, number)
        met = high < self.bound if self.below else low > self.bound
        return {**line, "number": number, "wanted": wanted, "met": met, "note": ""}


def spread(values: Tensor) -> measure.Interval | float:
    """Mean and interval; of one number that number."""
    return float(values) if values.numel() == 1 else measure.interval(values)


def short(error: object) -> str:
    """The first sentence."""
    return str(error).split(": ")[0].split(". ")[0].strip(" .")
