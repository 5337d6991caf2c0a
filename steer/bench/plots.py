"""Reward versus rows, and reward versus divergence."""

from __future__ import annotations

from typing import Any

from steer.bench.methods import BASELINE
from steer.bench.report import Curves, Panel


def figures(panels: dict[Panel, Curves]) -> dict[str, Any]:
    """File name -> matplotlib figure, with a plot for every panel."""
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    return {
        "reward-rows.png": _figure(panels, names, _rows, "denoiser rows a picture"),
        "reward-divergence.png": _figure(panels, names, _divergence, "divergence from the unsteered model"),
    }


def _figure(panels: dict[Panel, Curves], names: list[str], draw: Any, label: str) -> Any:
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns + 1.8, 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    tab = matplotlib.colormaps["tab20"].colors  # pairs of a dark and a light one
    colours = dict(zip(names, (*tab[::2], *tab[1::2]) * 3))
    handles: dict[str, Any] = {}
    for ax, (panel, curves) in zip(axes, panels.items()):
        for name, points in curves.items():
            style = {"color": colours[name], "lw": 1.6, "marker": "o", "ms": 3, "ls": "--" if name == BASELINE else "-"}
            handles[name] = draw(ax, points, style)
        ax.set_title(str(panel), fontsize=8)
        ax.set_xlabel(label, fontsize=8)
        ax.set_ylabel(panel.reward, fontsize=8)
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.2)
    for ax in axes[len(panels) :]:
        ax.remove()
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7, frameon=False)
    return figure


def _rows(ax: Any, points: Any, style: dict[str, Any]) -> Any:
    costs, targets = [p.cost for p in points], [p.target for p in points]
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.fill_between(costs, [t.low for t in targets], [t.high for t in targets], color=style["color"], alpha=0.12, lw=0)
    return ax.plot(costs, [t.mean for t in targets], **style)[0]


def _divergence(ax: Any, points: Any, style: dict[str, Any]) -> Any:
    away, targets = [p.divergence for p in points], [p.target for p in points]
    ax.errorbar(
        [d.mean for d in away],
        [t.mean for t in targets],
        xerr=[[d.mean - d.low for d in away], [d.high - d.mean for d in away]],
        yerr=[[t.mean - t.low for t in targets], [t.high - t.mean for t in targets]],
        fmt="none",
        ecolor=style["color"],
        alpha=0.35,
        lw=0.8,
    )
    return ax.plot([d.mean for d in away], [t.mean for t in targets], **style)[0]
