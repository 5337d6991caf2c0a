"""The tables of a suite: every method at its largest budget, and what is ahead of a reference."""

from __future__ import annotations

from collections.abc import Sequence

from steer.bench.report import Curves, Panel, goal_of, reaches
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


def ahead_of(curves: Curves, reference: str) -> list[dict[str, str]]:
    """Column -> text for the reference at its best, and for every method at the least budget that reaches it.

    Nothing is interpolated. The difference of the judge's scores is paired, prompt by prompt.
    """
    best = max(curves[reference], key=lambda point: point.target.mean)
    lines = []
    for name, points in curves.items():
        there = [best] if name == reference else [p for p in points if p.target.mean >= best.target.mean]
        if there:
            p = there[0]
            same = p.judged.shape == best.judged.shape
            judge = interval((p.judged - best.judged).mean(1)) if p is not best and same else None
            lines.append(
                (
                    p.cost,
                    {
                        "method": p.spec,
                        "rows": f"{p.cost:.0f}",
                        "of the rows": f"{p.cost / best.cost:.2f}",
                        "target": str(p.target),
                        "judge": str(p.judge),
                        f"judge - {reference}": "" if judge is None else str(judge),
                        "kid": "" if p.kid is None else str(p.kid),
                    },
                )
            )
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]


def markdown(panels: dict[Panel, Curves], references: dict[Panel, str]) -> str:
    """All tables."""
    parts = []
    for panel, curves in panels.items():
        lines, ahead = lines_of(curves, references[panel]), ahead_of(curves, references[panel])
        seeds = min(point.seeds for points in curves.values() for point in points)
        parts.append(
            f"**{panel}**: {panel.prompts} prompts x {panel.images} pictures x {seeds} seeds, every method at its "
            "largest budget and best setting\n"
        )
        parts += [
            _table(lines),
            f"What reaches {references[panel]} at its best, and with how many rows\n",
            _table(ahead),
        ]
    return "\n".join(parts)


def _table(lines: Sequence[dict[str, str]]) -> str:
    cells = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"
