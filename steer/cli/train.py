"""`steer train`: fine-tune a model by a method of the table."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

if TYPE_CHECKING:
    from steer.cli.trainees import Painter, Writer
    from steer.training import Run, Tuned
    from steer.training.methods import Row

FREE = ("list", "steps", "save_every", "out", "check")  # what another call in the same folder may change


@dataclass(frozen=True)
class Train:
    """Fine-tune a diffusion pipeline or a language model; a run that was stopped goes on from its folder.

    Writes checkpoints, what was learnt as safetensors, the curves, and a row to OUT; at the end it compares the model
    with itself before, on prompts that it was not trained on. `steer generate --tuned OUT` makes pictures with it.
    Examples: steer train --list, steer train draft_k --dial k=1 --reward clip --steps 50,
    steer train grpo --prompts questions.txt --reward vader, steer train dft --examples answers.jsonl
    """

    method: Positional[str] = ""
    """a name of the table"""
    list: bool = False
    """print the table of methods and end"""
    model: str | None = None
    """emoji, emoji-flow, or a folder or hub id of a pipeline; for texts smollm2, or a folder or hub id"""
    reward: str | None = None
    """as for steer generate, default clip; of texts vader, json, length:WORDS or regex:PATTERN"""
    prompts: tuple[str, ...] = ()
    """to train on, or a file with one a line; default every second name of the embedded pictures"""
    pictures: str | None = None
    """for methods that learn from pictures: noto, twemoji, fluent-flat, fluent, or a folder whose files are named by
    their captions; default all four with an embedded model"""
    content: str | None = None
    """of style_tailoring: pictures of what is to be shown, as --pictures"""
    examples: Path | None = None
    """for methods that learn from texts: a JSONL with prompt and answer, or pairs as for steer vectors"""
    dial: UseAppendAction[tuple[str, ...]] = ()
    """of the method, as in --dial k=1 --dial rank=4"""
    lr: float | None = None
    """the dial lr"""
    batch: int | None = None
    """the dial batch, or size, whichever the method has"""
    steps: int = 100
    """of the optimiser"""
    accumulate: int = 1
    """losses that are averaged before each step"""
    clip: float = 1.0
    """norm to which the whole gradient is cut"""
    warmup: int = 0
    """steps over which the learning rate rises"""
    sampling: int = 20
    """steps of the pipeline's sampler"""
    guidance: float = 3.0
    tokens: int = 32
    """the longest answer of a language model"""
    check: Annotated[int, arg(help="prompts, or examples that are held out, for the comparison at the end")] = 16
    save_every: float = 120.0
    """seconds between checkpoints"""
    seed: int = 0
    out: Path = Path("steer-out/train")

    def run(self) -> None:
        from steer.cli import record, show, trainees
        from steer.training import tune
        from steer.training.methods import METHODS, method
        from steer.training.weights.report import snapshot

        if self.list:
            return listed()
        if self.check < 2:
            raise ValueError(f"--check {self.check}: an interval needs at least 2.")
        dials = self.dials(METHODS.get(self.method))
        made, run = method(self.method, **dials), self._run()
        out = record.folder(self.out)
        self._same(out, dict(made.dials))
        show.quiet()
        pictured = METHODS[self.method].kind == "diffusion"
        trainee = trainees.painter(self, made) if pictured else trainees.writer(self)
        before, shown, base = trainee.measured(self.seed), trainee.pictures, snapshot(trainee.task.model)
        tuned = tune(trainee.task, made, run, out / "checkpoints")
        after = trainee.measured(self.seed)
        self._write(out, trainee, tuned, base, shown)
        self._tell(out, tuned, before, after, dict(made.dials))

    def dials(self, row: Row | None) -> dict[str, Any]:
        """The method's arguments. Raises ValueError for what is no NAME=VALUE, and a batch that the method has not."""
        found = {}
        for text in self.dial:
            name, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"--dial {text}: expected NAME=VALUE, as in --dial rank=4.")
            found[name.strip()] = _value(value.strip())
        if self.lr is not None:
            found["lr"] = self.lr
        if self.batch is not None and row is not None:
            name = next((name for name in ("batch", "size") if name in row.dials), None)
            if name is None:
                raise ValueError(f"{row.name} has no batch: set {', '.join(row.dials)} by --dial.")
            found[name] = self.batch
        return found

    def _run(self) -> Run:
        from steer.training import Run

        return Run(self.steps, self.accumulate, self.clip or None, self.warmup, self.seed, self.save_every)

    def _same(self, out: Path, dials: dict[str, Any]) -> None:
        """Notes what this folder is for. Raises ValueError where it holds checkpoints of something else."""
        from steer.cli import record
        from steer.draw.save import written

        given = {name: value for name, value in record.config(self).items() if name not in FREE}
        given = json.loads(json.dumps({**given, "dial": "", "dials": dials}, default=str))
        path = out / "run.json"
        there = json.loads(path.read_text()) if path.exists() and (out / "checkpoints").exists() else given
        if other := {name: there.get(name) for name in given if there.get(name) != given[name]}:
            raise ValueError(f"{out} holds a run with {other}, and this one has others; choose another --out.")
        with written(path) as beside:
            beside.write_text(json.dumps(given, indent=1) + "\n")

    def _write(self, out: Path, trainee: Painter | Writer, tuned: Tuned, base: Any, before: Any) -> None:
        from steer.cli import record
        from steer.cli.curves import drawn
        from steer.draw import contact_sheet, save_png
        from steer.training.export import export

        export(tuned.handle, base, out, trainee.pipe)
        record.Rows(out / "log.jsonl").replace(tuned.log)
        save_png(drawn(tuned.log, self.method), out / "curve.png")
        if trainee.pictures is not None:
            columns = min(8, len(before))
            tiles = [*before[:columns], *trainee.pictures[:columns]]
            save_png(contact_sheet(tiles, columns, row_labels=["before", "after"]), out / "pictures.png")

    def _tell(self, out: Path, tuned: Tuned, before: Any, after: Any, dials: dict[str, Any]) -> None:
        from steer.cli import record, show
        from steer.cli.curves import cost_of
        from steer.measure import interval

        lines, measures = [], {}
        for name in before:
            one, other = before[name], after[name]
            measures[name] = {"before": one.tolist(), "after": other.tolist()}
            lines.append([name, f"{one.mean():.4g}", f"{other.mean():.4g}", str(interval(other - one))])
        cost, unit = cost_of(tuned.log)
        spent = {"cost": sum(cost), "unit": unit, "seconds": sum(row["seconds"] for row in tuned.log)}
        row = {**record.config(self), "dials": dials, **measures, **spent, "trained": tuned.count}
        record.Rows(out / "results.jsonl").replace([json.loads(json.dumps({**row, **record.origin()}, default=str))])
        caption = f"{tuned.count:,} numbers trained, {spent['cost']:,.0f} {unit}, {spent['seconds']:.1f} s; "
        title = f"{self.method}, {len(tuned.log)} steps, {len(next(iter(after.values())))} held out"
        show.table(title, ["", "before", "after", "difference"], lines, f"{caption}everything is in {out}")


def listed() -> None:
    """Print the table of methods."""
    from steer.cli import show
    from steer.training.methods import METHODS

    lines = [
        [row.name, row.kind, row.paper, row.about, " ".join(f"{name}={value}" for name, value in row.dials.items())]
        for row in METHODS.values()
    ]
    show.table("methods of training", ["method", "of", "arXiv", "what it does", "dials"], lines)


def _value(text: str) -> Any:
    """A number, None, True, a tuple; anything else is itself; with commas, several words."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(part for part in text.split(",") if part) if "," in text else text
