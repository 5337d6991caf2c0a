"""Editing, inpainting and avoidance on emoji-sd, each against what one would do without them.

    python -m benchmarks.edit               48 pictures a check, 20 steps
    python -m benchmarks.edit --small       8 pictures, 10 steps

edits    one word of a recorded run's caption is changed: CLIP-T of the new caption by the judge, how often it likes the
         new one better than the old; SSIM and judge cosine to the source. Against the new caption from the same seed
holes    the middle 24 x 24 of real emoji is repainted: judge distance to the true picture, squared error in the hole,
         how much more of a step there is across its edge. Patch swap (arXiv 1711.08590) against the mean colour
avoided  "A and heart" without the heart: CLIP-T of the concept and of A, SSIM to the plain run. Late negative guidance
         against the same negative prompt in the pipeline's own guidance

Writes RESULTS/edit.json, with intervals of 95 % over pictures and of paired differences, and a contact sheet of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.edit_runs import Found, Workshop, avoided, edits, holes
from benchmarks.output import part_of, tabulate, write
from steer import measure
from steer.cli import record, show
from steer.draw import contact_sheet, save_png

Check = Callable[[Workshop, int, Callable[[], None]], Found]
CHECKS: dict[str, tuple[Check, str, int]] = {
    "edits": (edits, "resample", 5),
    "holes": (holes, "mean colour", 3),
    "avoided": (avoided, "negative prompt", 0),
}
"""name -> what it does, the method that the others are held against, its runs a picture (0: all pictures in one)."""
SMALL = {"pictures": 8, "steps": 10}


@dataclass(frozen=True)
class Edit:
    """Pictures of each check, and the settings of all runs."""

    pictures: int = 48
    steps: int = 20
    guidance: float = 3.0
    small: bool = False
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the tables go between its `<!-- python -m benchmarks.edit -->` and the end of that"""


def lines_of(check: str, found: Found, against: str) -> list[dict[str, Any]]:
    """A line a method and measure, with the paired difference to the method that it is held against."""
    return [
        {
            "check": check,
            "method": method,
            "measure": name,
            "value": measure.interval(ours),
            "minus the other's": measure.interval(ours - found.values[against][name]),
        }
        for method, values in found.values.items()
        for name, ours in values.items()
    ]


def sheet_of(found: Found, path: Path) -> None:
    """The first six pictures, a row each."""
    some = found.pictures[:6]
    labels = {"column_labels": found.columns}
    save_png(contact_sheet([*some.flatten(0, 1)], columns=len(found.columns), **labels), path)


def main(bench: Edit) -> None:
    """Run, print and write."""
    if bench.small:
        bench = replace(bench, **SMALL)
    if bench.pictures < 2:
        raise ValueError(f"pictures = {bench.pictures}: an interval over pictures needs at least 2.")
    record.folder(bench.results)
    part, shop, table = part_of(bench), Workshop(bench.steps, bench.guidance), []
    with show.bars() as bars:
        for name, (check, against, runs) in CHECKS.items():
            task = bars.add_task(name, total=runs * bench.pictures or 4)
            found = check(shop, bench.pictures, lambda task=task: bars.advance(task))
            table += lines_of(name, found, against)
            sheet_of(found, bench.results / f"edit-{name}.png")
    tabulate(table, "emoji-sd, edited; 95 % intervals", part)
    write(bench, {"table": table})


if __name__ == "__main__":
    main(tyro.cli(Edit, description=__doc__))
