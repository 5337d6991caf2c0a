"""Methods with a strength dial, compared where they keep as much of the content: between their settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KEPT = "content"
RESAMPLES = 2000


@dataclass(frozen=True)
class Curves:
    """What every method measures at its settings, picture by picture.

    found  {method: {measure: (settings, pictures)}}; `KEPT` is among the measures

    At a level of content similarity a method's measure is that of the straight line between the means at the two
    neighbouring settings, ordered by mean content similarity. Intervals resample the pictures, the same for all
    methods, and interpolate anew: percentile bootstrap, 95 %.
    """

    found: dict[str, dict[str, np.ndarray]]

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], measures: Sequence[str], picture: str = "name") -> Curves:
        """From rows with a method, a dial and a picture's name: settings in the order of the dial."""
        found = {}
        for method in dict.fromkeys(row["method"] for row in rows):
            own = sorted((row for row in rows if row["method"] == method), key=lambda row: (row["dial"], row[picture]))
            settings = len({row["dial"] for row in own})
            columns = {name: np.array([float(row[name]) for row in own]) for name in (*measures, KEPT)}
            found[method] = {name: column.reshape(settings, -1) for name, column in columns.items()}
        return cls(found)

    def at(self, method: str, measure: str, level: float, take: Any = slice(None)) -> float:
        """The measure at a level of content similarity, of some of the pictures."""
        kept, values = (self.found[method][name][:, take].mean(1) for name in (KEPT, measure))
        order = kept.argsort()
        return float(np.interp(level, kept[order], values[order]))

    def reaches(self, method: str, level: float) -> bool:
        """Whether the level lies between a method's settings."""
        kept = self.found[method][KEPT].mean(1)
        return bool(kept.min() <= level <= kept.max())

    def ahead(self, method: str, other: str, measure: str, level: float, seed: int = 0) -> list[float] | None:
        """method - other at a level of content similarity: mean, low, high; None if one of them does not reach it."""
        if not (self.reaches(method, level) and self.reaches(other, level)):
            return None
        rng, pictures = np.random.default_rng(seed), self.found[method][KEPT].shape[1]

        def apart(take: Any) -> float:
            return self.at(method, measure, level, take) - self.at(other, measure, level, take)

        every = [apart(rng.integers(pictures, size=pictures)) for _ in range(RESAMPLES)]
        return [apart(slice(None)), *np.quantile(every, [0.025, 0.975]).tolist()]

    def difference(self, method: str, other: str, measure: str, seed: int = 0) -> list[float]:
        """method - other, both at the end of their dial: mean, low, high."""
        apart = self.found[method][measure][-1] - self.found[other][measure][-1]
        rng = np.random.default_rng(seed)
        every = apart[rng.integers(len(apart), size=(RESAMPLES, len(apart)))].mean(1)
        return [float(apart.mean()), *np.quantile(every, [0.025, 0.975]).tolist()]
