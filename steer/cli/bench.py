"""`steer bench`: searches compared at equal denoiser rows, and the report on them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import subcommand

from steer.cli.compare import Compare

if TYPE_CHECKING:
    from steer.bench import Cell
    from steer.bench.report import Panel, Point


@dataclass(frozen=True)
class Search:
    """Run methods x budgets x seeds x rewards x guidance on models; what is finished is never run again.

    Every method gets the particles that a budget of denoiser rows pays for; best-of-n with a deterministic solver is
    always among them. One row a cell goes to OUT/results.jsonl.
    Examples: steer bench search --models toy-modes,
    steer bench search --methods code:block=5 fk --rewards clip colour:red --guidance 3 --workers 2,
    steer bench search --models emoji-sd emoji-flow --ray local --gpus 0.5
    """

    models: tuple[str, ...] = ("emoji-sd",)
    """emoji-sd, emoji-flow, a pipeline's folder or hub id, toy-modes, toy-normal, toy-modes-flow, toy-normal-flow"""
    methods: tuple[str, ...] = ()
    """names, each with all its settings, or one setting as in code:block=5; default all"""
    rewards: tuple[str, ...] = ()
    """as for steer generate; default compressibility, clip, style:noto, colour:red, sharpness; a toy has its own"""
    budgets: tuple[int, ...] = ()
    """denoiser rows for a picture, each branch of guidance a row; default 1, 2, 4, 8 and 16 trajectories"""
    guidance: tuple[float, ...] = (1.5, 3.0, 6.0)
    seeds: int = 3
    steps: int = 20
    prompts: int = 16
    images: int = 2
    """pictures of each prompt, each from its own search; diversity is measured among them"""
    prompt_set: str = "names"
    """names, held-out-colours or held-out-pairs"""
    dtype: str = "float32"
    device: str | None = None
    """of the models; default cuda where there is one, else cpu"""
    workers: int = 1
    """processes on this machine"""
    ray: str | None = None
    """address of a Ray cluster, or `local`: needs the `ray` extra"""
    cpus: float = 1
    """processors that each cell asks of Ray"""
    gpus: float = 0
    """graphics cards, or a share of one, that each cell asks of Ray"""
    out: Path = Path("steer-out/bench")

    def run(self) -> None:
        from steer.bench import finished
        from steer.cli import record, running, show

        out = record.folder(self.out)
        todo, rows = self._todo(out)
        failed: list[tuple[Cell, Exception]] = []
        work = functools.partial(measured, device=running.device_of(self.device))
        with show.bars() as bars:
            task = bars.add_task("cells", total=len(todo))
            for cell, answer in finished(work, todo, self.workers, self.ray, self.cpus, self.gpus):
                if isinstance(answer, Exception):
                    failed.append((cell, answer))
                else:
                    rows.add(answer)
                bars.update(task, advance=1, description=f"{cell.method} {cell.reward} {cell.budget}"[:34])
        if rows.rows:
            _print(rows.rows)
        show.console.print(
            f"{len(rows.rows)} rows are in {out}/results.jsonl; draw them: steer bench report --out {out}"
        )
        if failed:
            cell, error = failed[0]
            raise ValueError(
                f"{len(failed)} cells failed and are left for the next run; the first, {cell}: "
                f"{type(error).__name__}: {error}"
            )

    def _todo(self, out: Path) -> tuple[list[Cell], Any]:
        from steer.bench import cells_of
        from steer.bench.toys import TOYS
        from steer.cli import record, show

        if self.seeds < 1 or self.steps < 1 or self.prompts < 2 or self.images < 2:
            raise ValueError(
                f"--seeds {self.seeds} --steps {self.steps} --prompts {self.prompts} --images {self.images}: expected "
                "at least 1 seed, 1 step, 2 prompts (for intervals) and 2 images (for diversity)."
            )
        if not set(self.models) <= set(TOYS):
            show.quiet()
        same = {name: getattr(self, name) for name in ("steps", "prompts", "images", "prompt_set", "dtype")}
        cells, left_out = cells_of(
            self.models, self.methods, self.rewards, self.budgets, self.guidance, self.seeds, **same
        )
        rows = record.Rows(out / "results.jsonl")
        done = {_key(row["cell"]) for row in rows.rows}
        todo = [cell for cell in cells if _key(asdict(cell)) not in done]
        for why in left_out:
            show.console.print(f"left out: {why}")
        cost = sum(cell.budget * cell.prompts * cell.images for cell in todo)
        show.console.print(f"{len(cells)} cells, {len(cells) - len(todo)} finished before; up to {cost:,} rows to go")
        return todo, rows


@dataclass(frozen=True)
class Report:
    """Draw the curves of a suite's rows, with intervals, and write its tables.

    Every method is shown at its best setting for each budget. Writes reward-rows.png, reward-divergence.png and
    table.md to OUT.
    Example: steer bench report --out steer-out/bench --into docs/search.md
    """

    out: Path = Path("steer-out/bench")
    """folder of results.jsonl"""
    into: Path | None = None
    """a Markdown file whose part between `<!-- steer bench report -->` and `<!-- end of steer bench report -->` is
    replaced by the tables of what reaches CoDe as published"""

    def run(self) -> None:
        from steer.bench.plots import figures
        from steer.bench.report import curves_of
        from steer.bench.tables import markdown
        from steer.cli import record, show
        from steer.cli.page import Part
        from steer.draw import save_png

        if not (self.out / "results.jsonl").exists():
            raise ValueError(
                f"there is no results.jsonl in {self.out}; run `steer bench search --out {self.out}` first."
            )
        part = None if self.into is None else Part(self.into, "steer bench report")
        panels = _print(record.Rows(self.out / "results.jsonl").rows)
        (record.folder(self.out) / "table.md").write_text(markdown(panels))
        for name, figure in figures({panel: curves_of(points) for panel, points in panels.items()}).items():
            save_png(figure, self.out / name)
        if part is not None:
            part.write(markdown(panels, whole=False))
        show.console.print(f"wrote reward-rows.png, reward-divergence.png and table.md to {self.out}")


@dataclass(frozen=True)
class Bench:
    """Compare searches at equal denoiser rows, and steering with fine-tuning.

    Examples: steer bench search --models toy-modes, steer bench report, steer bench compare --tuned draft_k
    """

    action: (
        Annotated[Search, subcommand("search", prefix_name=False)]
        | Annotated[Report, subcommand("report", prefix_name=False)]
        | Annotated[Compare, subcommand("compare", prefix_name=False)]
    )

    def run(self) -> None:
        self.action.run()


def measured(cell: Cell, device: str) -> dict[str, Any]:
    """The row of a cell, with what made it."""
    from steer.bench import run
    from steer.bench.toys import TOYS
    from steer.cli import record, show

    if cell.model not in TOYS:
        show.quiet()
    return {**run(cell, device), **record.origin()}


def _key(cell: dict[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def _print(rows: Iterable[dict[str, Any]]) -> dict[Panel, list[Point]]:
    """Print two tables for every panel; returns the panels."""
    from steer.bench.report import curves_of, points_of
    from steer.bench.tables import ahead_of, lines_of, reference_of
    from steer.cli import show

    panels = points_of(list(rows))
    for panel, points in panels.items():
        reference = reference_of(points)
        for title, lines in (
            (f"{panel}: largest budget, best setting", lines_of(curves_of(points), reference, brief=True)),
            (f"what reaches {reference} at its best", ahead_of(points, reference)),
        ):
            show.table(f"\n{title}", list(lines[0]), [list(line.values()) for line in lines])
    return panels
