"""Whether token maps are right: the noun's map against the alpha matte of a real emoji, which nobody else has exactly.

    python -m benchmarks.maps
    python -m benchmarks.maps --small        two minutes at most on two cores

Real glyphs on white are noised to every level of a run and shown to emoji-sd with their captions, `NAME, STYLE style`.
The maps of each side and level, stretched to [0, 1], are cut at one threshold, the best of those tried on a half of the
names; the other half gives the table: IoU with the matte on the map's own grid. Two controls have thresholds of their
own, chosen in the same way: the map of the word `style` in the same prompt, and the noun's map of the next picture.
`everything` is the IoU of a mask that is all ones. `order` is threshold-free: the chance that a cell of the object has
more heat than one beside it, 1/2 for a map that knows nothing. Intervals of 95 % over names. Writes
benchmarks/results/maps.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor
from torch.nn.functional import interpolate

import steer
from benchmarks.output import part_of, tabulate, write
from steer.cli import record, show
from steer.diffusion.attention import TokenMaps, attending, sites
from steer.diffusion.controllers.compose.tokens import positions
from steer.diffusion.controllers.compose.words import Phrase
from steer.diffusion.pipelines.families import family_of
from steer.diffusion.pipelines.family import encoded
from steer.measure import interval
from steer.zoo.data import STYLES, caption, compose, glyphs, rgba

THRESHOLDS = torch.linspace(0, 1, 41)
CHUNK = 32
COLUMNS = ("side", "sigma / alpha", "noun", "noun - `style`", "noun - next picture's", "everything", "order, noun")
"""What of a line is shown; the file has more."""
Cells = dict[tuple[str, int], Tensor]
"""(side or "all", step) -> maps of noun and other word, (pictures, 2, h, w)."""


@dataclass(frozen=True)
class Maps:
    """So many names, each in so many styles, at each level of a run of so many steps."""

    names: int = 296
    styles: int = 4
    steps: int = 10
    seed: int = 0
    small: bool = False
    """48 names in one style at 5 levels"""
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table goes between its `<!-- python -m benchmarks.maps -->` and the end of that"""


class Items(NamedTuple):
    """Pictures (m, 3, h, w), mattes (m, 1, h, w), captions and names; those of one name are neighbours."""

    pictures: Tensor
    mattes: Tensor
    captions: list[str]
    names: list[str]


def items_of(bench: Maps) -> Items:
    """Names spread evenly over the data set. Raises ValueError for more names or styles than there are."""
    every, names, _ = glyphs()
    if not (4 <= bench.names <= len(names) and 1 <= bench.styles <= len(STYLES) and bench.steps >= 1):
        raise ValueError(
            f"{bench.names} names in {bench.styles} styles, {bench.steps} steps: expected 4 to {len(names)} names, 1 "
            f"to {len(STYLES)} styles, and a step."
        )
    chosen = torch.linspace(0, len(names) - 1, bench.names).round().long().tolist()
    which = [((k + j) % len(STYLES), name) for k, name in enumerate(chosen) for j in range(bench.styles)]
    found = rgba(torch.stack([every[style, name] for style, name in which]))
    texts = [caption(names[name], STYLES[style]) for style, name in which]
    return Items(compose(found), found[:, 3:], texts, [names[name] for _, name in which])


@torch.no_grad()
def cells_of(bench: Maps, pipe: Any, items: Items, tick: Callable[[], None]) -> Cells:
    """The maps of all pictures, mean over heads and the layers of a side."""
    generator, cells = torch.Generator().manual_seed(bench.seed), {}
    for first in range(0, len(items.names), CHUNK):
        some = Items(*(part[first : first + CHUNK] for part in items))
        denoiser = steer.denoiser_of(pipe, some.captions, num_inference_steps=bench.steps, guidance_scale=1.0)
        clean = encoded(pipe, family_of(pipe), some.pictures)
        noise = torch.randn(clean.shape, generator=generator)
        tokens = [_tokens(pipe, text, name) for text, name in zip(some.captions, some.names)]
        for step, level in enumerate(denoiser.schedule[:-1]):
            maps = TokenMaps()
            with attending(pipe.unet, sites(pipe.unet, "cross"), maps):
                denoiser(level.alpha * clean + level.sigma * noise, level, denoiser.cond)
            for side, found in _by_side(maps).items():
                words = torch.stack([torch.stack([m[own].mean(0) for own in t]) for m, t in zip(found, tokens)])
                cells.setdefault((side, step), []).append(words)
            tick()
    return {cell: torch.cat(parts) for cell, parts in cells.items()}


def _tokens(pipe: Any, text: str, name: str) -> tuple[list[int], list[int]]:
    """Of the noun, and of the word `style`."""
    phrases = (Phrase(name, 0), Phrase("style", text.rindex("style")))
    noun, other = (list(positions(pipe.tokenizer, text, phrase)) for phrase in phrases)
    return noun, other


def _by_side(maps: TokenMaps) -> dict[str, Tensor]:
    sides = sorted({one.shape[-1] for one in maps.found.values()}, reverse=True)
    means = {
        str(side): torch.stack([one for one in maps.found.values() if one.shape[-1] == side]).mean(0) for side in sides
    }
    return {**means, "all": maps.mean()}


def stretched(maps: Tensor) -> Tensor:
    """Each map (..., h, w) from 0 to 1."""
    low, high = maps.amin((-1, -2), keepdim=True), maps.amax((-1, -2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)


def ious(maps: Tensor, mattes: Tensor) -> Tensor:
    """(thresholds, m) IoU of maps (m, h, w) cut at every threshold, with mattes (m, h, w) of 0 and 1."""
    masks = stretched(maps) >= THRESHOLDS[:, None, None, None]
    both, either = (masks & mattes).sum((-1, -2)), (masks | mattes).sum((-1, -2))
    return both / either


def order(maps: Tensor, mattes: Tensor) -> Tensor:
    """(m,) the chance that a cell inside has more heat than one outside, ties counted half; nan without either."""
    parts = zip(maps.flatten(1).split(CHUNK), mattes.flatten(1).split(CHUNK))
    return torch.cat([_order(heat[:, :, None], heat[:, None], inside) for heat, inside in parts])


def _order(one: Tensor, other: Tensor, inside: Tensor) -> Tensor:
    pairs = inside[:, :, None] & ~inside[:, None, :]
    above = ((one > other).float() + (one >= other).float()) / 2
    return (pairs * above).sum((1, 2)) / pairs.sum((1, 2))


def line_of(bench: Maps, maps: Tensor, items: Items) -> dict[str, Any]:
    """One side and level: thresholds from every second name, numbers from the others."""
    mattes = interpolate(items.mattes, maps.shape[-2:], mode="area")[:, 0] >= 0.5
    named = torch.arange(len(mattes)) // bench.styles
    tuning, test = named % 2 == 0, named % 2 == 1
    usable = mattes.flatten(1).any(1)  # an object may be thinner than a cell
    found = {}
    for kind, heat in {"noun": maps[:, 0], "style": maps[:, 1], "next": maps[:, 0].roll(-bench.styles, 0)}.items():
        # the next name is of the other half: its picture is another, and so is the word
        every = ious(heat, mattes)
        best = every[:, tuning & usable].mean(1).argmax()
        found[kind] = every[best], float(THRESHOLDS[best])
    noun, other, following = (_by_name(bench, found[kind][0], test, usable) for kind in ("noun", "style", "next"))
    full = _by_name(bench, mattes.flatten(1).float().mean(1), test, usable)
    return {
        "noun": interval(noun),
        "noun - `style`": interval(noun - other),
        "noun - next picture's": interval(noun - following),
        "noun - everything": interval(noun - full),
        "everything": float(full.mean()),
        **{f"order, {kind}": _mean(order(maps[test, k], mattes[test])) for k, kind in enumerate(("noun", "`style`"))},
        "threshold": found["noun"][1],
        "tuning": _gain(found["noun"][0] - mattes.flatten(1).float().mean(1), tuning & usable),
    }


def _by_name(bench: Maps, values: Tensor, test: Tensor, usable: Tensor) -> Tensor:
    """(names,) means over the styles of a name, in the names that have a usable matte."""
    kept = torch.where(usable, values, torch.nan)[test].unflatten(0, (-1, bench.styles))
    means = kept.nanmean(1)
    return means[means.isfinite()]


def _gain(values: Tensor, where: Tensor) -> float:
    """What the noun's maps are ahead of a mask that is all ones, on the names that the thresholds come from."""
    return float(values[where].mean())


def _mean(values: Tensor) -> float | None:
    known = values[values.isfinite()]
    return float(known.mean()) if len(known) else None


def table_of(bench: Maps, cells: Cells, items: Items, schedule: list[steer.Level]) -> list[dict[str, Any]]:
    lines = []
    for (side, step), maps in sorted(cells.items(), key=lambda cell: (-_side(cell[0][0]), cell[0][1])):
        level = schedule[step]
        head = {"side": side, "step": step, "sigma / alpha": level.sigma / max(level.alpha, 1e-12)}
        lines.append({**head, **line_of(bench, maps, items)})
    return lines


def _side(side: str) -> int:
    return 0 if side == "all" else int(side)


def _shown(line: dict[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in COLUMNS}


def main(bench: Maps) -> None:
    """Measure, print and write."""
    bench = replace(bench, names=48, styles=1, steps=5) if bench.small else bench
    record.folder(bench.results)
    part, items = part_of(bench), items_of(bench)
    pipe = steer.load("emoji")
    with show.bars() as bars:
        task = bars.add_task("maps", total=-(-len(items.names) // CHUNK) * bench.steps)
        cells = cells_of(bench, pipe, items, lambda: bars.advance(task))
    schedule = steer.denoiser_of(pipe, "", num_inference_steps=bench.steps).schedule
    lines = table_of(bench, cells, items, schedule)
    tabulate([_shown(line) for line in lines], "IoU of token maps with the matte; 95 % intervals", part)
    best = max(lines, key=lambda line: line["tuning"])
    tabulate([_shown(best)], "the side and level furthest ahead of `everything` on the names of the thresholds", None)
    write(bench, {"table": lines, "best": best})


if __name__ == "__main__":
    main(tyro.cli(Maps, description=__doc__))
