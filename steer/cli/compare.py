"""`steer bench compare`: steer or fine-tune, at equal network rows."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steer.bench import Cell


@dataclass(frozen=True)
class Compare:
    """Train models, steer the untrained one, and compare both at equal rows a picture, the training shared out.

    What is finished is never run again: steered rows are those of `steer bench search` in OUT/results.jsonl, tuned ones
    go to OUT/tuned.jsonl. Writes break-even.png and break-even.md to OUT.
    Example: steer bench compare --tuned draft_k:k=1 ddpo --rewards colour:red --methods code:block=5
    """

    tuned: tuple[str, ...] = ("draft_k",)
    """methods of steer train, with dials as in draft_k:k=1,lr=0.001"""
    on_top: tuple[str, ...] = ()
    """methods of steer bench search that also steer the tuned models, as in code:block=5"""
    methods: tuple[str, ...] = ("best-of-n", "code:block=5")
    """that steer the untrained model, as for steer bench search"""
    models: tuple[str, ...] = ("emoji-sd",)
    rewards: tuple[str, ...] = ("colour:red",)
    budgets: tuple[int, ...] = ()
    """rows for a picture; default 1, 2, 4, 8 and 16 trajectories; tuned models have one, or 4 with a method on top"""
    guidance: tuple[float, ...] = (3.0,)
    seeds: int = 3
    training_steps: int = 100
    accumulate: int = 1
    steps: int = 20
    prompts: int = 16
    images: int = 2
    prompt_set: str = "names"
    dtype: str = "float32"
    device: str | None = None
    report: bool = False
    """draw what is there, and run nothing"""
    out: Path = Path("steer-out/compare")

    def run(self) -> None:
        from steer.bench.tuned import training_method
        from steer.cli import record
        from steer.cli.bench import Search

        for spec in self.tuned:
            training_method(spec)
        out = record.folder(self.out)
        if not self.report:
            names = ("models", "methods", "rewards", "budgets", "guidance", "seeds", "steps", "prompts", "images")
            same = {name: getattr(self, name) for name in (*names, "prompt_set", "dtype", "device", "out")}
            Search(**same).run()
            self._tune(out)
        self._tell(out)

    def _tune(self, out: Path) -> None:
        """Every training that has no rows yet, seed by seed."""
        from steer.bench.tuned import tuned_rows
        from steer.cli import record, running, show
        from steer.training import Run

        rows, device = record.Rows(out / "tuned.jsonl"), running.device_of(self.device)
        done = {_key(row["training"]["method"], row["training"]["run"], row["cell"]) for row in rows.rows}
        every = itertools.product(range(self.seeds), self.models, self.rewards, self.guidance, self.tuned)
        todo = []
        for seed, model, reward, scale, spec in every:
            run = Run(self.training_steps, self.accumulate, seed=seed)
            cells = self._cells(model, reward, scale, seed, device)
            if left := [cell for cell in cells if _key(spec, asdict(run), asdict(cell)) not in done]:
                todo.append((spec, run, left))
        with show.bars() as bars:
            for spec, run, cells in bars.track(todo, description="trainings"):
                same = _key(spec, asdict(run), {**asdict(cells[0]), "method": "", "budget": 0})
                name = blake2b(same.encode(), digest_size=8).hexdigest()
                for row in tuned_rows(spec, cells, run, out / "checkpoints" / name, device):
                    rows.add({**row, **record.origin()})

    def _cells(self, model: str, reward: str, guidance: float, seed: int, device: str) -> list[Cell]:
        """Plain sampling, and four trajectories' worth of what steers on top."""
        from steer.bench import BASELINE, Cell
        from steer.bench.worlds import branches, world_of

        one = branches(world_of(model, self.dtype, device), guidance) * self.steps
        same = {"steps": self.steps, "prompts": self.prompts, "images": self.images}
        same |= {"prompt_set": self.prompt_set, "dtype": self.dtype}
        ways = [(BASELINE, one), *((name, 4 * one) for name in self.on_top)]
        return [Cell(model, name, reward, budget, guidance, seed, **same) for name, budget in ways]

    def _tell(self, out: Path) -> None:
        from steer.bench.breakeven import at_equal_rows, figure, quality, tuned_of
        from steer.bench.report import points_of
        from steer.bench.tables import table
        from steer.cli import record, show
        from steer.draw import save_png

        steered = points_of(record.Rows(out / "results.jsonl").rows)
        tuned = tuned_of(record.Rows(out / "tuned.jsonl").rows)
        panels = {panel: (tuned[panel], points) for panel, points in steered.items() if panel in tuned}
        if not panels:
            raise ValueError(
                f"{out} has no steered and tuned rows of the same prompts and settings; run without --report."
            )
        text = []
        for panel, (models, points) in panels.items():
            tables = {"what they are": quality(models, points), "at equal rows": at_equal_rows(models, points)}
            for title, lines in tables.items():
                show.table(f"\n{panel}: {title}", list(lines[0]), [list(line.values()) for line in lines])
                text += [f"**{panel}: {title}**\n", table(lines)]
        (out / "break-even.md").write_text("\n".join(text))
        save_png(figure(panels), out / "break-even.png")
        show.console.print(f"wrote break-even.png and break-even.md to {out}")


def _key(spec: str, run: dict[str, Any], cell: dict[str, Any]) -> str:
    return json.dumps([spec, run, cell], sort_keys=True)
