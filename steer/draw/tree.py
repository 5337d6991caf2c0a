"""The family tree of one prompt's particles: who was looked at, what they scored, and who continued whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steer.rewards.border import to_pil

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from steer.diffusion.state import Look

INK = "#1f2328"


def lineage_tree(
    trace: Sequence[Look] | Sequence[Mapping[str, Any]],
    image: int = 0,
    title: str = "",
    images: Sequence[Any] = (),
) -> Figure:
    """A matplotlib figure: looks from left to right, particles from top to bottom, the winner's line thick.

    trace   `State.trace`: (step, scores (P, n), index (P, n)) a look, or the rows of `SteeredOutput.trace`
    image   which prompt's particles to draw
    images  optional pictures of the n particles at the last look, before its choice: PIL or float (3, h, w)

    A dot is a particle as a look found it, coloured by its score. Line k from look j to look j + 1 begins at the
    ancestor that slot k continues. Pruned slots and failed scores have no dot. Raises ValueError for an empty trace,
    for a prompt that is not in it, and for another number of pictures than particles.
    """
    from matplotlib.figure import Figure

    steps, scores, index = _looks(trace, image)
    looks, n = scores.shape
    if len(images) not in (0, n):
        raise ValueError(f"lineage_tree: {len(images)} pictures came; expected one for each of the {n} particles.")
    figure = Figure(
        figsize=(min(14, 2.6 + 1.1 * looks), min(12, 1.6 + (0.6 if len(images) else 0.4) * n)), layout="constrained"
    )
    axes = figure.add_subplot()
    seen = torch.isfinite(scores)
    if not seen.any():
        raise ValueError("lineage_tree: no look has a finite score; there is nothing to colour.")
    row, column = seen.nonzero(as_tuple=True)
    dots = axes.scatter(
        row + 1, column, c=scores[seen], s=64, cmap="viridis", edgecolors="white", linewidths=0.8, zorder=4
    )
    _lines(axes, index, seen, dots.to_rgba(scores, alpha=0.5))
    _thick(axes, _winner(scores, index))
    figure.colorbar(dots, ax=axes, label="score", shrink=0.8, pad=0.02).outline.set_visible(False)
    _pictures(axes, images, looks)
    _frame(axes, steps, n, title)
    return figure


def _looks(trace: Sequence[Any], image: int) -> tuple[list[int], Tensor, Tensor]:
    """Steps, scores (looks, n) and ancestors (looks, n) of one prompt."""
    if not len(trace):
        raise ValueError("lineage_tree: the trace is empty; only a run under a search has looks to draw.")
    if not isinstance(trace[0], Mapping):
        count = len(trace[0].scores)
        if not 0 <= image < count:
            raise ValueError(f"lineage_tree: image {image} of a trace of {count}; expected 0 ... {count - 1}.")
        return (
            [k.i for k in trace],
            torch.stack([k.scores[image] for k in trace]),
            torch.stack([k.index[image] for k in trace]),
        )
    rows = [row for row in trace if row["image"] == image]
    if not rows:
        raise ValueError(
            f"lineage_tree: image {image} is not in the trace; it has {sorted({r['image'] for r in trace})}."
        )
    n = max(row["particle"] for row in rows) + 1
    scores = torch.tensor([row["score"] for row in rows]).reshape(-1, n)
    index = torch.tensor([row["ancestor"] for row in rows]).reshape(-1, n)
    return [row["step"] for row in rows[::n]], scores, index


def _winner(scores: Tensor, index: Tensor) -> list[int]:
    """The slots of the best particle of the last look, at every look back to the first."""
    line = [int(scores[-1].argmax())]
    for ancestors in reversed(index[:-1]):
        line.append(int(ancestors[line[-1]]))
    return line[::-1]


def _lines(axes: Axes, index: Tensor, seen: Tensor, colours: Any) -> None:
    """Every slot's line from its ancestor, in the colour of its score; from the start, at 0, each comes by itself."""
    own = torch.arange(index.shape[1])
    for j, ancestors in enumerate([own, *index[:-1]]):
        for k in seen[j].nonzero()[:, 0].tolist():
            axes.plot((j, j + 1), (int(ancestors[k]), k), color=colours[j, k], linewidth=1.6, zorder=1)


def _thick(axes: Axes, winner: list[int]) -> None:
    axes.plot(range(len(winner) + 1), [winner[0], *winner], color=INK, linewidth=3.6, zorder=2, solid_joinstyle="round")
    axes.scatter(len(winner), winner[-1], s=240, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=5)


def _pictures(axes: Axes, images: Sequence[Any], looks: int) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    for k, picture in enumerate(images):
        picture = to_pil(picture[None])[0] if isinstance(picture, Tensor) else picture
        small = OffsetImage(picture, zoom=36 / max(picture.size))
        axes.add_artist(AnnotationBbox(small, (looks, k), xybox=(32, 0), boxcoords="offset points", frameon=False))


def _frame(axes: Axes, steps: list[int], n: int, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xticks(range(len(steps) + 1), ["start", *map(str, steps)])
    axes.set_xlabel("step of the look")
    axes.set_ylabel("particle")
    axes.set_yticks(range(0, n, max(1, n // 16)))
    axes.set_ylim(n - 0.4, -0.6)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
