"""The curves of a training run: its reward, or its loss, over steps and over what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

WINDOW = 10  # steps of the moving mean

COSTS = {"rows": ("rows", "backward_rows"), "tokens": ("tokens", "backward_tokens")}
"""Unit -> what is noted of a step: forward, and backward, which counts two."""


def cost_of(log: Sequence[dict[str, float]]) -> tuple[list[float], str]:
    """What each step cost, in network rows or in tokens, a backward one counted as two; steps where nobody counts."""
    for unit, (forward, backward) in COSTS.items():
        if log and all(forward in row for row in log):
            return [row[forward] + 2 * row[backward] for row in log], unit
    return [1.0] * len(log), "steps"


def drawn(log: Sequence[dict[str, float]], title: str) -> Any:
    """Two plots of the same values, faint, with their moving mean."""
    from matplotlib.figure import Figure

    shown = "reward" if all("reward" in row for row in log) else "loss"
    values = [row[shown] for row in log]
    means = [sum(values[max(0, k - WINDOW + 1) : k + 1]) / min(k + 1, WINDOW) for k in range(len(values))]
    cost, unit = cost_of(log)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    places = {"step": range(1, len(values) + 1), f"{unit}, a backward one counted as two": [*accumulate(cost)]}
    for ax, (label, x) in zip(figure.subplots(1, 2, sharey=True), places.items()):
        ax.plot(x, values, color="#0b6e99", alpha=0.3, lw=0.8)
        ax.plot(x, means, color="#0b6e99")
        ax.set_xlabel(label)
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel(shown)
    figure.suptitle(title, fontsize=10)
    return figure
