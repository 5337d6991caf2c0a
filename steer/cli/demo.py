"""`steer demo`: the main job on the embedded model, in under three minutes on two cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

if TYPE_CHECKING:
    from steer.compare import Budget, Outcome

PROMPTS = ("a red apple", "a cat face, fluent style", "a rocket, noto style", "a butterfly")
REWARDS = {"clip": "prompt alignment", "compressibility": "JPEG compressibility"}
COLUMNS = ("reward", "method", "target", "judge", "diversity", "rows", "decodes", "seconds")


@dataclass(frozen=True)
class Demo:
    """Steer the embedded model to two rewards and compare, at the same number of denoiser rows.

    Plain sampling keeps all n pictures that its rows buy, best-of-n and CoDe the best one.
    Example: steer demo -n 8 --out my-demo
    """

    n: Annotated[int, arg(aliases=["-n"])] = 4
    """particles for each picture"""
    steps: int = 20
    block: int = 4
    """steps between two choices of CoDe"""
    guidance: float = 3.0
    images: int = 2
    """pictures for each prompt; diversity is measured between them"""
    seed: int = 0
    out: Path = Path("steer-out/demo")

    def run(self) -> None:
        import steer
        from steer.cli import record, show
        from steer.compare import METHODS, Budget

        show.quiet()
        out = record.folder(self.out)
        budget = Budget(self.n, self.steps, self.block, self.guidance)
        if self.images < 2:
            raise ValueError(f"--images {self.images}: diversity needs at least 2 pictures a prompt.")
        pipe = steer.load("emoji")
        pipe.set_progress_bar_config(disable=True)
        outcomes: dict[tuple[str, str], Outcome] = {}
        with show.bars() as bars:
            tasks = {cell: bars.add_task(" / ".join(cell), total=100) for cell in _cells(METHODS)}
            for cell, task in tasks.items():
                outcomes[cell] = self._run(
                    pipe, cell, budget, lambda share, task=task: bars.update(task, completed=100 * share)
                )
        rows = [self._row(cell, outcome) for cell, outcome in outcomes.items()]
        record.Rows(out / "results.jsonl").replace([{**row, **record.origin()} for row in rows])
        show.table("same denoiser rows, three ways to spend them", COLUMNS, [_cells_of(row) for row in rows])
        self._draw(out, outcomes)
        show.console.print(f"wrote {out}/contact-sheet.png, lineage.png and results.jsonl")

    def _run(self, pipe: Any, cell: tuple[str, str], budget: Budget, on_step: Any) -> Outcome:
        from steer.compare import run
        from steer.rewards import named

        return run(pipe, cell[1], named(cell[0]), PROMPTS, budget, self.seed, self.images, on_step)

    def _row(self, cell: tuple[str, str], outcome: Outcome) -> dict[str, Any]:
        from steer import measure
        from steer.cli import record
        from steer.compare import score
        from steer.rewards import Judge

        return {
            **record.config(self),
            "reward": cell[0],
            "method": cell[1],
            "target": float(outcome.target.mean()),
            "judge": float(score(Judge(), outcome.pictures, PROMPTS).mean()),
            "diversity": float(measure.diversity(outcome.pictures).mean()),
            **asdict(outcome.ledger),
        }

    def _draw(self, out: Path, outcomes: dict[tuple[str, str], Outcome]) -> None:
        from steer.draw import contact_sheet, lineage_tree, save_png

        step = {method: self.n if method == "plain" else 1 for _, method in outcomes}  # particle 0 of each image
        shown = {cell: slice(None, None, step[cell[1]]) for cell in outcomes}
        sheet = contact_sheet(
            [picture for cell, o in outcomes.items() for picture in o.pictures[:, shown[cell]].flatten(0, 1)],
            columns=len(PROMPTS) * self.images,
            row_labels=[f"{REWARDS[reward]}\n{method}" for reward, method in outcomes],
            column_labels=[prompt if k == 0 else "" for prompt in PROMPTS for k in range(self.images)],
            captions=[f"{x:.2f}" for cell, o in outcomes.items() for x in o.target[:, shown[cell]].flatten().tolist()],
        )
        save_png(sheet, out / "contact-sheet.png")
        chosen = outcomes["compressibility", "code"].output
        save_png(lineage_tree(chosen.trace, image=0, title=f"{PROMPTS[0]}, CoDe"), out / "lineage.png")


def _cells(methods: Sequence[str]) -> list[tuple[str, str]]:
    return [(reward, method) for reward in REWARDS for method in methods]


def _cells_of(row: dict[str, Any]) -> list[str]:
    return [f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS[:-1]] + [
        f"{row['seconds']:.1f}"
    ]
