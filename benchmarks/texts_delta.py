"""Delta Activations: are models that were tuned on texts of one domain near each other?

Six LoRA of SmolLM2, two for each of three domains, on disjoint examples; then the silhouette of their vectors by
domain, of the changes of their weights B A, of A and B as they are, and of the mean state of what they answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from benchmarks.texts_domains import DOMAINS, examples
from benchmarks.texts_parts import Check, Part, Row, World, of, some
from steer.language.data import encoded
from steer.language.decode.ledger import Ledger
from steer.language.guard import answering
from steer.language.tower import tower
from steer.training import Run, tune
from steer.training.text import TextTask, delta_activations, silhouette
from steer.training.text.delta import PROBES
from steer.training.text.methods import text_sft

WEIGHTS = "changes of weights"


@dataclass(frozen=True)
class Size:
    steps: int = 60
    batch: int = 4
    rank: int = 8
    lr: float = 5e-4
    examples: int = 80
    """of each adapter"""
    asked: int = 16
    """tokens of a prompt, the template apart"""
    answered: int = 24
    """tokens of an answer"""
    written: int = 24
    """tokens of an answer to a probe"""


ADAPTERS = tuple(f"{domain} {k}" for domain in DOMAINS for k in "12")
MIXED = " + ".join(ADAPTERS[::4])
"""On the examples of two, of different domains."""


def run(world: World, size: Size, adapter: str) -> Row:
    """Train an adapter, keep it in a file, and describe it; or compare the weights of all of them."""
    if adapter == WEIGHTS:
        if missing := [name for name in ADAPTERS if not path_of(world, name).exists()]:
            raise ValueError(f"{missing} have no weights in {world.out}: their own runs say why.")
        return compared([load_file(path_of(world, name)) for name in ADAPTERS])
    dials = (size.examples, size.asked, size.answered)
    own = [one for name in adapter.split(" + ") for one in examples(world, name, *dials)]
    task = TextTask(world.model, world.tokenizer, own, end=False, ledger=Ledger())
    tuned = tune(task, text_sft(size.batch, size.rank, size.lr), Run(size.steps))
    save_file(tuned.last, path_of(world, adapter))
    vector = delta_activations(tuned.handle, world.tokenizer)
    texts = answering(world.model, world.tokenizer, size.written)(list(PROBES))
    tuned.handle.detach()
    losses = torch.tensor([row["loss"] for row in tuned.log]).split(max(1, size.steps // 4))
    return {
        "vector": vector.tolist(),
        "output": pooled(world, texts).tolist(),
        "losses": [float(losses[0].mean()), float(losses[-1].mean())],
        "text": texts[0],
        "tokens": task.ledger.tokens,
    }


def path_of(world: World, adapter: str) -> Path:
    return world.out / f"{adapter.replace(' ', '-')}.safetensors"


@torch.no_grad()
def pooled(world: World, texts: list[str]) -> Tensor:
    """The mean over texts of the untuned model's mean final state of each, (d,)."""
    rows = encoded(world.tokenizer, list(PROBES), [text or " " for text in texts])
    out = tower(world.model).decoder(**rows.inputs(), position_ids=rows.positions, use_cache=False)
    of_answers = out.last_hidden_state * rows.answer[..., None]
    return (of_answers.sum(1) / rows.answer.sum(1, keepdim=True)).mean(0)


def compared(adapters: list[dict[str, Tensor]]) -> Row:
    """Inner products of the changes B A, and of all of A and B, between adapters (n, n)."""
    changes = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    numbers = changes.clone()
    for name in (name for name in adapters[0] if "lora_A" in name):
        a, b = (torch.stack([one[key].double() for one in adapters]) for key in (name, name.replace("_A", "_B")))
        changes += torch.einsum("irx,jsx,iyr,jys->ij", a, a, b, b)
        numbers += torch.einsum("irx,jrx->ij", a, a) + torch.einsum("iyr,jyr->ij", b, b)
    return {"changes": changes.tolist(), "numbers": numbers.tolist()}


def vectors(rows: list[Row], kind: str) -> Tensor:
    """One vector an adapter, (6, d); of weights, vectors with their inner products."""
    if kind in ("vector", "output"):
        return torch.cat([of(rows, kind, adapter=name) for name in ADAPTERS])
    values, basis = torch.linalg.eigh(of(rows, kind, adapter=WEIGHTS)[0])
    return basis * values.clamp_min(0).sqrt()


def grouped(rows: list[Row], kind: str) -> float:
    """The silhouette of the adapters by domain."""
    return silhouette(vectors(rows, kind), [name.split(" ")[0] for name in ADAPTERS])


def twins(rows: list[Row], kind: str) -> float:
    """How many adapters are nearest to the one of the same domain; they come two by two."""
    unit = normalize(vectors(rows, kind), dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-2.0).argmax(1)
    return float((nearest == torch.arange(len(unit)) ^ 1).sum())


def additive(rows: list[Row]) -> float:
    """cos(v of both, v of one + v of the other)."""
    parts = torch.stack([of(rows, "vector", adapter=name)[0] for name in MIXED.split(" + ")])
    return float(cosine_similarity(of(rows, "vector", adapter=MIXED)[0], parts.sum(0), dim=0))


KINDS = {"vector": "Delta Activations", "changes": "B A", "numbers": "A and B", "output": "mean states of answers"}


def lines(rows: list[Row]) -> list[Row]:
    losses = [row["losses"] for row in some(rows) if "losses" in row]
    mean = [sum(part) / len(losses) for part in zip(*losses)]
    scores = {name: (grouped(rows, kind), twins(rows, kind)) for kind, name in KINDS.items()}
    return [
        {"vectors": name, "silhouette": score, "twins of 6": count, "loss": mean}
        for name, (score, count) in scores.items()
    ]


def more(kind: str) -> Check:
    value = lambda rows: grouped(rows, "vector") - grouped(rows, kind)  # noqa: E731
    return Check(f"silhouette of Delta Activations less that of {KINDS[kind]}", value)


CHECKS = (
    Check("silhouette of Delta Activations", lambda r: grouped(r, "vector"), 0.3, False),
    *(more(kind) for kind in KINDS if kind != "vector"),
    Check("adapters of 6 nearest to their twin", lambda r: twins(r, "vector"), 5.0, False),
    Check("cos of the vector of a mixture and the sum of two", additive),
)
PART = Part(
    Size(),
    Size(steps=1, examples=4, asked=4, answered=4, written=2),
    lambda size, seeds: [{"adapter": name} for name in (*ADAPTERS, MIXED, WEIGHTS)],
    run,
    CHECKS,
    lines,
)
