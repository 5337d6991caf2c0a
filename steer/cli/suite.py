"""`steer vectors suite`: what a vector does to choices, agreement and sentiment, and to plain text beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

if TYPE_CHECKING:
    from torch import Tensor

SENTIMENT, NEUTRAL = "sentiment of answers", "neutral text, nats a token"


@dataclass(frozen=True)
class Suite:
    """Measure a model with and without a vector; for more, write the vector for lm-eval (steer.language.files).

    Of TruthfulQA.csv the share of questions whose best answer is the likeliest by its mean log-probability (MC1,
    length-normalised); of a persona file, or of pairs, the share whose positive answer is likelier (agreement); the
    sentiment of answers by VADER; and the log-probability of neutral texts. Differences to no vector have 95 %
    intervals: paired bootstrap over questions, answers or texts.
    Example: steer vectors suite extraversion.safetensors truthfulqa.csv extraversion.jsonl --strengths -0.1 0.1
    """

    vector: Positional[Path]
    files: Positional[tuple[Path, ...]]
    strengths: tuple[float, ...] = (0.1,)
    sites: tuple[str, ...] = ()
    """some of the vector's; default all"""
    questions: int = 100
    """of each file, by a hash with another seed than that of `fit`"""
    prompts: tuple[str, ...] = (
        *("How was your weekend?", "Tell me about your town.", "What do you think of the rain?"),
        *("What should I cook tonight?", "Describe your neighbour.", "Write about a long train ride."),
    )
    """whose answers' sentiment is measured"""
    tokens: int = 40
    """the longest answer"""
    edit: str = "add"
    where: str = "all"
    model: str = "smollm2"
    seed: int = 1
    out: Path = Path("steer-out/suite")

    def run(self) -> None:
        from steer.cli import models, record, show
        from steer.language import files, steering

        if not self.strengths or len(self.prompts) < 2:
            raise ValueError("the suite needs at least one strength, and two prompts for an interval.")
        out = record.folder(self.out)
        vector = files.load(self.vector)
        vector = vector[self.sites] if self.sites else vector
        asked = {path.stem: asked_of(path, self.questions, self.seed) for path in self.files}
        show.quiet()
        model, tokenizer = models.language(self.model)
        found = {}
        with show.bars() as bars:
            for strength in bars.track((0.0, *self.strengths), description="strengths"):
                with steering(model, vector, strength, edit=self.edit, where=self.where):
                    found[strength] = self._measured(model, tokenizer, asked)
        rows = [
            {"measure": name, "strength": strength, **line(values, found[0.0][name])}
            for name in found[0.0]
            for strength, values in ((strength, found[strength][name]) for strength in self.strengths)
        ]
        record.Rows(out / "results.jsonl").replace([{**record.config(self), **row, **record.origin()} for row in rows])
        lines = [[str(value) for value in row.values()] for row in rows]
        show.table(f"{self.vector.name} on {self.model}", list(rows[0]), lines, f"written to {out}/results.jsonl")

    def _measured(self, model: Any, tokenizer: Any, asked: dict[str, list[Any]]) -> dict[str, Tensor]:
        """Measure -> its value for each question, answer or text."""
        from steer.language.data import whole
        from steer.language.guard import answering
        from steer.language.neutral import TEXTS
        from steer.language.scoring import chosen, log_probs
        from steer.rewards import Vader

        prompts = list(self.prompts)
        texts = answering(model, tokenizer, self.tokens)(prompts)
        return {
            **{name: (chosen(model, tokenizer, questions) == 0).double() for name, questions in asked.items()},
            SENTIMENT: Vader()(texts, prompts).double(),
            NEUTRAL: log_probs(model, whole(tokenizer, list(TEXTS))).double(),
        }


def asked_of(path: Path, count: int, seed: int) -> list[Any]:
    """So many questions of a file: choices of TruthfulQA.csv, else pairs. Raises ValueError where it has fewer."""
    from steer.cli import models
    from steer.language.readers import split, truthful_qa_choices

    every = truthful_qa_choices(path) if path.suffix == ".csv" else models.pairs_of(path)
    return split(every, [count], seed)[0]


def line(steered: Tensor, plain: Tensor) -> dict[str, Any]:
    """Both means, and their difference with its interval."""
    from steer.measure import interval

    steered, plain = steered.cpu(), plain.cpu()
    means = {"plain": f"{float(plain.mean()):.3f}", "steered": f"{float(steered.mean()):.3f}"}
    return {**means, "difference": str(interval(steered - plain))}
