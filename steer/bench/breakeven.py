"""Steer or fine-tune: both at equal network rows a picture, when training is shared by all pictures ever made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from steer.bench.report import Panel, Point, Row, points_of, reaches
from steer.measure import interval

PICTURES = (1, 100, 10_000)


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model, sampled by a method of the suite: where it is, and the rows that its training cost."""

    point: Point
    training: float

    def cost(self, pictures: float) -> float:
        """Rows for a picture of so many, those of the training shared out."""
        return self.point.cost + self.training / pictures


def tuned_of(rows: Sequence[Row]) -> dict[Panel, list[Tuned]]:
    """Panel -> models, from rows of `tuned_rows`: a training and a way of sampling each, over all seeds."""
    named = []
    for row in rows:
        training = row["training"]
        spec = f"{training['method']}, {training['run']['steps']} steps + {row['cell']['method']}"
        named.append({**row, "cell": {**row["cell"], "method": spec}})
    costs: dict[tuple[str, int], list[float]] = {}
    for row in named:
        costs.setdefault((row["cell"]["method"], row["cell"]["budget"]), []).append(row["training"]["cost"])
    return {
        panel: [Tuned(p, sum(costs[p.spec, p.budget]) / len(costs[p.spec, p.budget])) for p in points]
        for panel, points in points_of(named).items()
    }


def envelope(points: Sequence[Point]) -> list[Point]:
    """The steered points that no cheaper one equals in the reward, cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.target.mean)):
        if not found or point.target.mean > found[-1].target.mean:
            found.append(point)
    return found


def steered_at(points: Sequence[Point], cost: float) -> Point | None:
    """The best reward that steering has for at most so many rows a picture; None where they pay for nothing."""
    affordable = [point for point in envelope(points) if point.cost <= cost * (1 + 1e-9)]
    return affordable[-1] if affordable else None


def break_even(tuned: Tuned, points: Sequence[Point]) -> float | None:
    """From how many pictures on a tuned model is cheaper than steering to the same reward.

        training / (rows a picture that steering needs - rows a picture of the tuned model)

    inf where steering never costs more; None where it does not reach that reward at any budget that was run.
    """
    needed = reaches(envelope(points), tuned.point.target.mean)
    if needed is None:
        return None
    return tuned.training / (needed - tuned.point.cost) if needed > tuned.point.cost else math.inf


def quality(tuned: Sequence[Tuned], points: Sequence[Point]) -> list[dict[str, str]]:
    """Column -> text for the steered points that no cheaper one equals, and for every tuned model.

    forgetting  judge of the untrained, unsteered model less this one's, paired prompt by prompt
    drift       divergence from the untrained model's pictures of the same prompts
    pays from   the break-even, in pictures made
    """
    plain = min(points, key=lambda p: p.cost)
    every = [(point, None) for point in envelope(points)] + [(one.point, one) for one in tuned]
    return [
        {
            "": p.spec,
            "reward": str(p.target),
            "forgetting": str(interval((plain.judged - p.judged).mean(1)))
            if p.judged.shape == plain.judged.shape
            else "",
            "diversity": f"{p.diversity.mean:.3f}",
            "drift": f"{p.divergence.mean:.2f}",
            "rows": f"{p.cost:.0f}",
            "training rows": "" if one is None else f"{one.training:.0f}",
            "pays from": "" if one is None else _said(break_even(one, points)),
        }
        for p, one in every
    ]


def at_equal_rows(tuned: Sequence[Tuned], points: Sequence[Point]) -> list[dict[str, str]]:
    """Column -> text for every tuned model at each of `PICTURES`, beside the best steering for no more rows."""
    lines = []
    for one in tuned:
        for pictures in PICTURES:
            best = steered_at(points, one.cost(pictures))
            line = {"": one.point.spec, "pictures": f"{pictures:,}", "rows": f"{one.cost(pictures):.0f}"}
            line |= {"tuned": f"{one.point.target.mean:.3f}"}
            line |= {"steered": "" if best is None else f"{best.target.mean:.3f}"}
            lines.append({**line, "by": "" if best is None else f"{best.spec}, {best.cost:.0f} rows"})
    return lines


def _said(pictures: float | None) -> str:
    if pictures is None:
        return "out of reach of steering"
    return "never" if math.isinf(pictures) else f"{pictures:,.0f}"


def figure(panels: dict[Panel, tuple[list[Tuned], list[Point]]]) -> object:
    """Two plots a panel: reward over rows a picture, tuned models at each of `PICTURES`; rows over pictures.

    In the second a dashed line is what steering needs for the reward of the tuned model of its colour: where the two
    cross is the break-even.
    """
    from matplotlib.figure import Figure

    whole = Figure(figsize=(11, 3.8 * len(panels)), layout="constrained")
    axes = whole.subplots(len(panels), 2, squeeze=False)
    for (left, right), (panel, (tuned, points)) in zip(axes, panels.items()):
        steered = envelope(points)
        left.plot([p.cost for p in steered], [p.target.mean for p in steered], "ko-", ms=3, label="steered, best")
        for k, one in enumerate(tuned):
            colour, many = f"C{k}", [10 ** (e / 10) for e in range(61)]
            costs = [one.cost(pictures) for pictures in PICTURES]
            left.plot(costs, [one.point.target.mean] * len(costs), "o-", ms=4, color=colour, label=one.point.spec)
            for cost, pictures in zip(costs, PICTURES):
                left.annotate(f"{pictures:,}", (cost, one.point.target.mean), fontsize=6, ha="center", va="bottom")
            right.plot(many, [one.cost(pictures) for pictures in many], color=colour)
            if (needed := reaches(steered, one.point.target.mean)) is not None:
                right.axhline(needed, color=colour, ls="--", lw=0.9)
                if math.isfinite(crossing := break_even(one, points) or math.inf):
                    right.plot(crossing, needed, "o", color=colour, ms=4)
        _labelled(left, "rows a picture, training shared by 1, 100 and 10,000", panel.reward, str(panel))
        _labelled(right, "pictures made", "rows a picture", "solid: tuned; dashed: steered to the same reward")
        right.set_yscale("log")
        right.legend(*left.get_legend_handles_labels(), loc="upper right", fontsize=6)  # no curve goes there
    return whole


def _labelled(ax, x: str, y: str, title: str) -> None:
    ax.set_xscale("log")
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)
    ax.set_title(title, fontsize=8)
    ax.grid(alpha=0.2)
    ax.tick_params(labelsize=7)
