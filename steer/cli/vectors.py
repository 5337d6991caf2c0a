"""`steer vectors`: fit steering vectors, apply them, look at them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, subcommand

from steer.cli.suite import Suite
from steer.cli.sweep import Sweep


@dataclass(frozen=True)
class Fit:
    """Make a vector of pairs of a wanted and an unwanted answer.

    PAIRS is a JSONL with prompt, positive and negative in each line, a persona file of anthropics/evals, or
    TruthfulQA.csv. Example: steer vectors fit extraversion.jsonl --sites 12 --pairs 64 --out extraversion.safetensors
    """

    pairs_file: Positional[Path]
    out: Path = Path("steer-out/vector.safetensors")
    """.safetensors, or .gguf as llama.cpp reads it"""
    model: str = "smollm2"
    """a folder or hub id of a causal language model, or `smollm2`"""
    method: str = "mean"
    """mean (CAA), pca, probe, or grains: gradient attribution"""
    sites: tuple[str, ...] = ()
    """layers, as in 12 or 12.heads; default every layer"""
    at: str | None = None
    """where states are read; last, answer, mean; of grains prompt_last or response_last"""
    pairs: int | None = None
    """how many of the file's, by a hash; default all"""
    k: int = 5
    """of grains: tokens of each sign"""
    seed: int = 0

    def run(self) -> None:
        from steer.cli import models, record, show
        from steer.language import files
        from steer.language.extract.directions import METHODS
        from steer.language.readers import split
        from steer.rewards.border import unknown

        if self.method not in (*METHODS, "grains"):
            raise unknown("method", self.method, (*METHODS, "grains"))
        record.folder(self.out.parent)
        show.quiet()
        every = models.pairs_of(self.pairs_file)
        chosen = every if self.pairs is None else split(every, [self.pairs], self.seed)[0]
        model, tokenizer = models.language(self.model)
        vector = self._fitted(model, tokenizer, chosen)
        files.save(vector, self.out)
        show.console.print(f"{self.out}: {len(vector.sites)} sites, {len(chosen)} pairs, method {self.method}")

    def _fitted(self, model, tokenizer, chosen):
        from steer.language import extract, grains

        at, sites = {} if self.at is None else {"at": self.at}, self.sites or None
        if self.method == "grains":
            return grains.fit(model, tokenizer, chosen, self.k, sites=sites, seed=self.seed, **at)
        return extract.fit(model, tokenizer, chosen, self.method, sites=sites, **at)


@dataclass(frozen=True)
class Apply:
    """Answer prompts, plainly and steered, greedily.

    Example: steer vectors apply vector.safetensors "How was your weekend?" --strength -0.1 0.1
    """

    vector: Positional[Path]
    prompts: Positional[tuple[str, ...]]
    strength: tuple[float, ...] = (0.1,)
    """shares of each state's norm; negative is the other way"""
    sites: tuple[str, ...] = ()
    """some of the vector's; default all"""
    edit: str = "add"
    where: str = "all"
    model: str = "smollm2"
    tokens: int = 40

    def run(self) -> None:
        from steer.cli import models, show
        from steer.language import files, steering
        from steer.language.guard import answering

        if not self.prompts:
            raise ValueError("no prompts: give at least one after the vector.")
        vector = files.load(self.vector)
        vector = vector[self.sites] if self.sites else vector
        show.quiet()
        model, tokenizer = models.language(self.model)
        rows = []
        for strength in (0.0, *self.strength):
            with steering(model, vector, strength, edit=self.edit, where=self.where):
                found = answering(model, tokenizer, self.tokens)(list(self.prompts))
            rows += [[prompt, f"{strength:g}", text.strip()] for prompt, text in zip(self.prompts, found)]
        rows.sort(key=lambda row: self.prompts.index(row[0]))
        show.table(f"{self.vector.name}, {self.edit}, {self.where}", ["prompt", "strength", "text"], rows)


@dataclass(frozen=True)
class Show:
    """What a vector's file holds: its sites, their sizes, and how it was made. Example: steer vectors show v.gguf"""

    vector: Positional[Path]

    def run(self) -> None:
        from steer.cli import show
        from steer.language import files

        vector = files.load(self.vector)
        rows = []
        for place, v in vector.directions.items():
            size = vector.norms.get(place)
            share = "" if size is None else f"{float(v.norm()) / size:.3f}"
            rows.append(
                [str(place), str(len(v)), f"{float(v.norm()):.4g}", "" if size is None else f"{size:.4g}", share]
            )
        caption = "\n".join(f"{name}: {value}" for name, value in vector.provenance.items())
        show.table(self.vector.name, ["site", "width", "|v|", "median |h|", "|v| / |h|"], rows, caption)


@dataclass(frozen=True)
class Compare:
    """Cosines between vectors, at each site that they share. Example: steer vectors compare caa.safetensors pca.gguf"""

    vectors: Positional[tuple[Path, ...]]

    def run(self) -> None:
        from steer.cli import show
        from steer.language import files

        if len(self.vectors) < 2:
            raise ValueError(f"{len(self.vectors)} vectors: expected at least two to compare.")
        first, *others = [files.load(path) for path in self.vectors]
        found = [first.cosine(other) for other in others]
        shared = [place for place in first.sites if any(place in one for one in found)]
        if not shared:
            raise ValueError(f"{self.vectors[0].name} shares no site with the others.")
        rows = [[str(s), *(f"{one[s]:.3f}" if s in one else "" for one in found)] for s in shared]
        show.table(f"cosine with {self.vectors[0].name}", ["site", *(path.name for path in self.vectors[1:])], rows)


@dataclass(frozen=True)
class Vectors:
    """Fit, apply and look at steering vectors of language models.

    Examples: steer vectors fit pairs.jsonl, steer vectors apply steer-out/vector.safetensors "Hello!"
    """

    action: (
        Annotated[Fit, subcommand("fit", prefix_name=False)]
        | Annotated[Apply, subcommand("apply", prefix_name=False)]
        | Annotated[Show, subcommand("show", prefix_name=False)]
        | Annotated[Compare, subcommand("compare", prefix_name=False)]
        | Annotated[Sweep, subcommand("sweep", prefix_name=False)]
        | Annotated[Suite, subcommand("suite", prefix_name=False)]
    )

    def run(self) -> None:
        self.action.run()
