"""The tables of a suite: every method at its largest budget, and what is ahead of a reference."""

from __future__ import annotations

from collections.abc import Sequence

from steer.bench.methods import BASELINE, PUBLISHED
from steer.bench.report import Curves, Panel, Point, curves_of, goal_of, reaches
from steer.measure import interval

BRIEF = ("method", "target", "judge", "divergence", "rows")


def lines_of(curves: Curves, reference: str, brief: bool = False) -> list[dict[str, str]]:
    """Column -> text for every method at its largest budget, best first; the last says what reaches the reference."""
    goal, lines = goal_of(curves, reference), []
    for points in sorted(curves.values(), key=lambda points: -points[-1].target.mean):
        p, least = points[-1], reaches(points, goal)
        line = {
            "method": p.spec,
            "target": f"{p.target.mean:.3f} ± {(p.target.high - p.target.low) / 2:.3f}" if brief else str(p.target),
            "judge": f"{p.judge.mean:.3f}" if brief else str(p.judge),
            "diversity": str(p.diversity),
            "divergence": f"{p.divergence.mean:.2f}" if brief else str(p.divergence),
            "kid": "" if p.kid is None else str(p.kid),
            "rows": f"{p.cost:.0f}",
            "decodes": f"{p.decodes:.0f}",
            "s": f"{p.seconds:.2f}",
            "rows/s": f"{p.rows / p.seconds:.0f}",
            "MB": "" if p.peak_mb is None else f"{p.peak_mb:.0f}",
        }
        line = {name: text for name, text in line.items() if not brief or name in BRIEF}
        lines.append({**line, f"as good as {reference}": "never" if least is None else f"{least:.0f} rows"})
    return lines


def ahead_of(points: Sequence[Point], reference: str) -> list[dict[str, str]]:
    """Column -> text for the reference at its best, and for every other setting at the least budget that reaches it.

    Nothing is interpolated. The difference of the judge's scores is paired, prompt by prompt.
    """
    best = max((p for p in points if p.method == reference), key=lambda p: p.target.mean)
    first: dict[str, Point] = {}
    for p in points:
        if p.method != reference and p.target.mean >= best.target.mean:
            first.setdefault(p.spec, p)
    lines = []
    for p in sorted((best, *first.values()), key=lambda p: p.cost):
        paired = p is not best and p.judged.shape == best.judged.shape
        line = {
            "method": p.spec,
            "rows": f"{p.cost:.0f}",
            "of the rows": f"{p.cost / best.cost:.2f}",
            "target": str(p.target),
            "judge": str(p.judge),
            f"judge - {reference}": str(interval((p.judged - best.judged).mean(1))) if paired else "",
            "kid": "" if p.kid is None else str(p.kid),
        }
        lines.append(line)
    return lines


def reference_of(points: Sequence[Point]) -> str:
    """The method that the others are measured by: CoDe as published, or the baseline where that was not run."""
    return PUBLISHED if any(p.method == PUBLISHED for p in points) else BASELINE


def markdown(panels: dict[Panel, list[Point]], whole: bool = True) -> str:
    """The tables of all panels: the whole of them, or what reaches the reference alone."""
    parts = []
    for panel, points in panels.items():
        reference, seeds = reference_of(points), min(point.seeds for point in points)
        of = f"**{panel}**: {panel.prompts} prompts x {panel.images} pictures x {seeds} seeds, "
        if whole:
            lines = lines_of(curves_of(points), reference)
            parts += [f"{of}every method at its largest budget and best setting\n", table(lines)]
        of = "" if whole else of
        parts += [f"{of}what reaches {reference} at its best\n", table(ahead_of(points, reference))]
    return "\n".join(parts)


def table(lines: Sequence[dict[str, str]]) -> str:
    """Lines of equal columns as Markdown."""
    cells = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"
