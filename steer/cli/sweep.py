"""`steer vectors sweep`: what each strength does to behaviour, to plain text, and to the length of answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional


@dataclass(frozen=True)
class Sweep:
    """Draw the margin of held-out pairs, the perplexity of neutral texts, and the length of answers over strength.

    Example: steer vectors sweep extraversion.safetensors extraversion.jsonl --sites 12
    """

    vector: Positional[Path]
    pairs_file: Positional[Path]
    strengths: tuple[float, ...] = (-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2)
    sites: tuple[str, ...] = ()
    """some of the vector's; default all"""
    pairs: int = 64
    """of the file's, by a hash with another seed than that of `fit`"""
    prompts: tuple[str, ...] = ("How was your weekend?", "What should I cook tonight?", "Tell me about your town.")
    """whose answers are measured"""
    tokens: int = 64
    """the longest answer"""
    edit: str = "add"
    where: str = "all"
    model: str = "smollm2"
    seed: int = 1
    out: Path = Path("steer-out/sweep")

    def run(self) -> None:
        from steer.cli import models, record, show
        from steer.draw import save_png
        from steer.language import files
        from steer.language.readers import split

        if not self.strengths or not self.prompts:
            raise ValueError("a sweep needs at least one strength and one prompt.")
        out = record.folder(self.out)
        vector = files.load(self.vector)
        vector = vector[self.sites] if self.sites else vector
        held = split(models.pairs_of(self.pairs_file), [self.pairs], self.seed)[0]
        show.quiet()
        model, tokenizer = models.language(self.model)
        rows = record.Rows(out / "results.jsonl")
        found = []
        with show.bars() as bars:
            for strength in bars.track(sorted(self.strengths), description="strengths"):
                found.append({"strength": strength, **self._at(model, tokenizer, vector, held, strength)})
        rows.replace([{**record.config(self), **row, **record.origin()} for row in found])
        save_png(drawn(found, self.vector.stem), out / "sweep.png")
        columns = ["strength", "margin", "agreement", "perplexity", "tokens"]
        lines = [[f"{row[name]:.3g}" for name in columns] for row in found]
        show.table(f"{self.vector.name}: {self.pairs} pairs", columns, lines, f"drawn in {out}/sweep.png")

    def _at(self, model: Any, tokenizer: Any, vector: Any, held: Any, strength: float) -> dict[str, float]:
        from steer.language import steering
        from steer.language.guard import answering
        from steer.language.neutral import TEXTS
        from steer.language.scoring import margins, perplexity

        with steering(model, vector, strength, edit=self.edit, where=self.where):
            margin = margins(model, tokenizer, held)
            texts = answering(model, tokenizer, self.tokens)(list(self.prompts))
            lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
            return {
                "margin": float(margin.mean()),
                "agreement": float((margin > 0).float().mean()),
                "perplexity": perplexity(model, tokenizer, list(TEXTS)),
                "tokens": sum(lengths) / len(lengths),
            }


def drawn(rows: list[dict[str, float]], title: str) -> Any:
    """Three curves over strength, one above the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    labels = {"margin": "margin of held-out pairs", "perplexity": "neutral perplexity", "tokens": "tokens of an answer"}
    for ax, (name, label) in zip(axes, labels.items()):
        ax.plot([row["strength"] for row in rows], [row[name] for row in rows], "o-", color="#0b6e99")
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
        ax.axvline(0, color="grey", lw=0.8)
    axes[-1].set_xlabel("strength")
    axes[0].set_title(title)
    return figure
