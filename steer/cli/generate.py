"""`steer generate`: pictures for a prompt, steered to a reward."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Generate:
    """Generate pictures for a prompt and steer them to a reward, with the embedded model or any of yours.

    Example: steer generate "a red apple, noto style" --reward compressibility -n 8 --images 4
    """

    prompt: Positional[str]
    model: str = "emoji"
    """a folder or hub id of a diffusers pipeline, or `emoji`, the embedded one"""
    tuned: Path | None = None
    """a folder of steer train: what the model has learnt there is put on it first"""
    control: Literal["code", "best-of-n", "none"] = "code"
    reward: str = "clip"
    """one reward, or several joined by commas: clip, compressibility, sharpness, colour:red, style:noto, edges:FILE"""
    n: Annotated[int, arg(aliases=["-n"])] = 8
    """particles for each picture"""
    block: int = 5
    """steps between two choices of CoDe"""
    steps: int = 50
    guidance: float = 3.0
    eta: float | None = None
    """noise dial from 0 to 1 for schedulers that draw no noise of their own; the embedded model needs none"""
    seed: int = 0
    images: int = 4
    out: Path = Path("steer-out/generate")

    def run(self) -> None:
        from steer.cli import record, show
        from steer.rewards import named

        show.quiet()
        reward = named(self.reward)
        controllers = self._controllers(reward)
        out = record.folder(self.out)
        output = self._generate(controllers)
        written = []
        for k, image in enumerate(output.images):
            written.append({**self._row(k, output), "file": f"{k}.png", **record.origin()})
            image.save(out / f"{k}.png")
        record.Rows(out / "results.jsonl").replace(written)
        self._draw(out, output)
        ledger = output.ledger
        show.table(
            self.prompt,
            ["picture", self.reward if controllers else "reward"],
            [[row["file"], "" if row["reward"] is None else f"{row['reward']:.3f}"] for row in written],
            f"{ledger.rows} denoiser rows, {ledger.decodes} decodes, {ledger.seconds:.1f} s; everything is in {out}",
        )

    def _controllers(self, reward: Any) -> list[Any]:
        from steer.diffusion.controllers import best_of_n, code

        if not self.prompt.strip():
            raise ValueError("the prompt is empty: say what to draw.")
        if self.images < 1 or self.steps < 1 or self.n < 1:
            raise ValueError(f"--images {self.images} --steps {self.steps} -n {self.n}: expected at least 1 of each.")
        return {"code": [code(reward, self.block)], "best-of-n": [best_of_n(reward)], "none": []}[self.control]

    def _generate(self, controllers: list[Any]) -> Any:
        import torch

        import steer
        from steer.cli import show

        pipe = steer.load(self.model)
        pipe.set_progress_bar_config(disable=True)
        if self.tuned is not None:
            put(self.tuned, pipe)
        with show.bars() as bars:
            task = bars.add_task(f"{self.control} on {self.model}", total=self.steps)

            def tell(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
                bars.update(task, completed=i + 1)
                return {}

            return steer.Steered(pipe, controllers, eta=self.eta)(
                self.prompt,
                n=self.n if controllers else 1,
                num_images_per_prompt=self.images,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=torch.Generator().manual_seed(self.seed),
                callback_on_step_end=tell,
            )

    def _row(self, k: int, output: Any) -> dict[str, Any]:
        from steer.cli import record

        reward = None if output.rewards is None else float(output.rewards[k])
        return {**record.config(self), "picture": k, "reward": reward, "ledger": output.ledger.row()}

    def _draw(self, out: Path, output: Any) -> None:
        from steer.draw import contact_sheet, lineage_tree, save_png

        candidates = output.candidates
        if candidates.scores is None:
            return
        labels = [f"{score:.3f}" for score in candidates.scores.flatten().tolist()]
        sheet = contact_sheet(list(candidates.pictures.flatten(0, 1)), columns=self.n, captions=labels)
        save_png(sheet, out / "candidates.png")
        save_png(lineage_tree(output.trace, image=0, title=self.prompt), out / "lineage.png")


def put(folder: Path, pipe: Any) -> None:
    """Put what `steer train` wrote to a folder on a pipeline. Raises ValueError as `load` does."""
    from steer.training.export import load
    from steer.training.methods import method

    path, parametrise, hint = folder / "run.json", None, ""
    try:
        if path.is_file():
            run = json.loads(path.read_text())
            parametrise = method(run["method"], **run["dials"]).phases[0].parametrise
            hint = f" It was trained with --model {run['model'] or 'emoji'}."
        load(folder, pipe, parametrise)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error!r}.") from error
    except ValueError as error:
        raise ValueError(f"{error}{hint}") from error
