"""From result rows to curves with intervals: the best setting of every method at every budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steer.measure import Interval, interval

Row = dict[str, Any]


class Panel(NamedTuple):
    """What all curves of one plot have in common."""

    model: str
    reward: str
    guidance: float
    prompt_set: str
    steps: int
    prompts: int
    images: int
    dtype: str

    def __str__(self) -> str:
        guided = "" if self.model.startswith("toy") else f", guidance {self.guidance:g}, {self.prompt_set}"
        return f"{self.model}, {self.reward}{guided}, {self.steps} steps"


@dataclass(frozen=True)
class Point:
    """One setting of a method at a budget, over all seeds.

    target, judge, diversity   means with bootstrap intervals over the prompts
    divergence, kid            mean, least and greatest of the seeds: each is one number a seed
    cost, ...                  means for a picture; cost is rows plus two for a backward row
    """

    spec: str
    budget: int
    seeds: int
    target: Interval
    judge: Interval
    diversity: Interval
    divergence: Interval
    kid: Interval | None
    cost: float
    rows: float
    decodes: float
    reward_calls: float
    seconds: float
    peak_mb: float | None
    judged: Tensor = field(repr=False, compare=False)  # (prompts, seeds)

    @property
    def method(self) -> str:
        return self.spec.partition(":")[0]


Curves = dict[str, list[Point]]


def points_of(rows: Sequence[Row]) -> dict[Panel, list[Point]]:
    """Panel -> every setting of every method at every budget, least budgets first."""
    cells: dict[tuple[Panel, int, str], list[Row]] = {}
    for row in rows:
        cell = row["cell"]
        panel = Panel(*(cell[name] for name in Panel._fields))
        cells.setdefault((panel, cell["budget"], cell["method"]), []).append(row)
    found: dict[Panel, list[Point]] = {}
    for (panel, _, _), same in sorted(cells.items(), key=lambda item: item[0][1]):
        found.setdefault(panel, []).append(_point(same))
    return found


def curves_of(points: Sequence[Point]) -> Curves:
    """Method -> its best setting at every budget, least budgets first."""
    best: dict[tuple[str, int], Point] = {}
    for point in points:
        key = (point.method, point.budget)
        if key not in best or point.target.mean > best[key].target.mean:
            best[key] = point
    found: Curves = {}
    for (name, _), point in best.items():
        found.setdefault(name, []).append(point)
    return found


def _point(rows: Sequence[Row]) -> Point:
    def mean(name: str) -> float:
        return sum(row[name] for row in rows) / len(rows)

    def over_prompts(name: str) -> Interval:
        return interval(torch.tensor([row[name] for row in rows]).T)

    def over_seeds(name: str) -> Interval:
        values = [row[name] for row in rows]
        return Interval(mean(name), min(values), max(values))

    return Point(
        spec=rows[0]["cell"]["method"],
        budget=rows[0]["cell"]["budget"],
        seeds=len(rows),
        **{name: over_prompts(name) for name in ("target", "judge", "diversity")},
        divergence=over_seeds("divergence"),
        kid=over_seeds("kid") if "kid" in rows[0] else None,
        **{name: mean(name) for name in ("cost", "rows", "decodes", "reward_calls", "seconds")},
        judged=torch.tensor([row["judge"] for row in rows]).T,
        peak_mb=max((row["peak_mb"] for row in rows if row["peak_mb"] is not None), default=None),
    )


def reaches(points: Sequence[Point], goal: float) -> float | None:
    """The least cost at which a curve's target is at `goal`, log cost interpolated; None if it never is."""
    if points[0].target.mean >= goal:
        return points[0].cost
    for a, b in zip(points, points[1:]):
        if b.target.mean >= goal:
            share = (goal - a.target.mean) / (b.target.mean - a.target.mean)
            return math.exp(math.log(a.cost) + share * (math.log(b.cost) - math.log(a.cost)))
    return None


def goal_of(curves: Curves, reference: str) -> float:
    """The best target that a method reaches at any budget."""
    return max(point.target.mean for point in curves[reference])
