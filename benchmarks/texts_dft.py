"""DFT beside plain supervised tuning: accuracy on stories of kinds that were not trained on, and what is forgotten.

Word problems have several good solutions each, where DFT should be no worse; invented facts have one right answer,
where it is expected to be worse. The learning rate of each is the better one on validating examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.texts_parts import Check, Part, Row, World, last, of, some
from benchmarks.texts_problems import invented, problems, right
from steer.language.data import language, whole
from steer.language.decode.ledger import Ledger
from steer.language.neutral import TEXTS
from steer.language.scoring import log_probs, perplexity
from steer.measure import interval
from steer.training import Run, tune
from steer.training.text import Example, TextTask
from steer.training.text.methods import dft, text_sft

METHODS = {"sft": text_sft, "dft": dft}
KINDS = ("problems", "facts")


@dataclass(frozen=True)
class Size:
    steps: int = 50
    batch: int = 8
    layers: int = 8
    """the last blocks, which are trained"""
    rates: tuple[float, ...] = (5e-4, 2e-3)
    train: int = 480
    valid: int = 30
    test: int = 100
    facts: int = 60
    """all of them trained on; the first third validates"""
    tokens: int = 32
    """of a generated solution"""
    neutral: int = len(TEXTS)


def parts(size: Size, kind: str) -> tuple[list[Example], list[Example], list[Example]]:
    """Examples to train on, to choose the learning rate by, and to measure."""
    if kind == "facts":
        every = invented(size.facts, 0)
        return every, every[: size.facts // 3], every[size.facts // 3 :]
    other = problems(size.valid + size.test, 1, other=True)
    return problems(size.train, 0), other[: size.valid], other[size.valid :]


def run(world: World, size: Size, kind: str, method: str, lr: float) -> Row:
    """Which validating and test examples are answered rightly, and the log-probabilities of neutral texts, in nats a
    token; method "before": of the model before training."""
    train, valid, test = parts(size, kind)
    task = TextTask(world.model, world.tokenizer, train, ledger=Ledger())
    tuned, row = None, {}
    if method != "before":
        targets = last(world.model, size.layers)
        tuned = tune(task, METHODS[method](size.batch, lr=lr, targets=targets), Run(size.steps))
        losses = torch.tensor([step["nll"] for step in tuned.log]).split(max(1, size.steps // 6))
        row = {"nll": [float(part.mean()) for part in losses], "seconds": sum(step["seconds"] for step in tuned.log)}
    said = answers(world, [one.prompt for one in valid + test], size.tokens if kind == "problems" else 4)
    hits = [float(right(text, one)) for text, one in zip(said, valid + test)]
    neutral = TEXTS[: size.neutral]
    row |= {"valid": hits[: len(valid)], "test": hits[len(valid) :], "text": said[0]}
    row |= {"perplexity": perplexity(world.model, world.tokenizer, neutral)}
    row |= {"neutral": log_probs(world.model, whole(world.tokenizer, neutral)).tolist()}
    if tuned is not None:
        tuned.handle.detach()
    return row


@torch.no_grad()
def answers(world: World, prompts: list[str], tokens: int, rows: int = 20) -> list[str]:
    """Greedy answers."""
    found: list[str] = []
    for k in range(0, len(prompts), rows):
        batch = whole(world.tokenizer, prompts[k : k + rows]).inputs()
        pad = language(world.tokenizer).pad_token_id or 0
        made = world.model.generate(**batch, max_new_tokens=tokens, do_sample=False, pad_token_id=pad)
        found += world.tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def best(rows: list[Row], kind: str, method: str) -> Row:
    """The run at the better learning rate by the validating examples, the lower one of equals."""
    return max(some(rows, kind=kind, method=method), key=lambda row: (sum(row["valid"]), -row["lr"]))


def ahead(rows: list[Row], kind: str, key: str = "test") -> Tensor:
    """DFT less SFT, example by example."""
    dft, sft = (of([best(rows, kind, method)], key)[0] for method in ("dft", "sft"))
    return dft - sft


def lines(rows: list[Row]) -> list[Row]:
    """Every method on every kind of example, at its better learning rate."""
    found = []
    for kind in KINDS:
        for method in ("before", *METHODS):
            row: Any = best(rows, kind, method)
            line = {"examples": kind, "method": method, "lr": row["lr"] or None}
            line |= {"accuracy": interval(torch.tensor(row["test"])), "perplexity": row["perplexity"]}
            found.append({**line, "seconds": row.get("seconds")})
    return found


CHECKS = (
    Check("accuracy on other stories, DFT less SFT", lambda r: ahead(r, "problems")),
    Check("rise of neutral texts' -log p a token by problems, SFT less DFT", lambda r: ahead(r, "problems", "neutral")),
    Check("accuracy on invented facts, SFT less DFT", lambda r: -ahead(r, "facts")),
)
PART = Part(
    Size(),
    Size(1, 2, 1, (1e-3,), 4, 2, 2, 6, 4, 2),
    lambda size, seeds: [
        {"kind": kind, "method": method, "lr": lr}
        for kind in KINDS
        for method, rates in (("before", (0.0,)), *((name, size.rates) for name in METHODS))
        for lr in rates
    ],
    run,
    CHECKS,
    lines,
)
