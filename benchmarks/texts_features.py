"""A classification task for the methods about texts: a linear head on the states of a language model, cached."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from benchmarks.texts_parts import World
from steer.language.data import Encoded, whole
from steer.language.decode.ledger import Ledger
from steer.language.readers import personas
from steer.language.tower import tower
from steer.training.text import TextTask


class Table(nn.Module):
    """A linear head over a frozen table of features (n, d): places (b,) -> logits (b, 2)."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = nn.Embedding.from_pretrained(features)
        self.head = nn.Linear(features.shape[1], 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.features

    def forward(self, places: Tensor) -> Tensor:
        return self.head(self.features(places))


class Labelled(TextTask):
    """Some places of a table with their labels, as examples of one token, which is the answer too."""

    def __init__(self, model: Table, places: Tensor, labels: Tensor):
        self.model, self.labels, self.ledger = model, labels, Ledger()
        ones = torch.ones(len(places), 1, dtype=torch.long)
        self.encoded = Encoded(places[:, None], ones, ones.bool())

    def answers(self, batch: Encoded, model: nn.Module | None = None) -> tuple[Tensor, Tensor, Tensor]:
        places = batch.input_ids[:, 0]
        logits = (model or self.model)(places)
        self.ledger.tokens += len(places)
        self.ledger.backward_tokens += len(places) * logits.requires_grad
        return logits, self.labels[places], torch.arange(len(places))


@torch.no_grad()
def states(world: World, file: str, count: int, rows: int = 16) -> tuple[Tensor, Tensor]:
    """Last-token final states of a persona file's statements (count, d), each of mean 0 and variance 1 / d, and whether
    they match the persona (count,); kept in a file. Raises ValueError where there are too few."""
    path = world.out / f"{file}.safetensors"
    pairs = personas(world.data / "persona" / f"{file}.jsonl", "{statement}")[:count]
    if not path.exists():
        _save(world, [pair.prompt for pair in pairs], path, rows)
    features = load_file(path)["states"]
    if not len(features) == len(pairs) == count:
        raise ValueError(
            f"{len(features)} states in {path}, {len(pairs)} statements in {file}: expected {count} of both; delete "
            "the states, and they are made again."
        )
    features = (features - features.mean(0)) / (features.std(0) * features.shape[1] ** 0.5)
    return features, torch.tensor([int(pair.positive == " Yes") for pair in pairs])


def _save(world: World, texts: list[str], path: Path, rows: int) -> None:
    found = []
    for k in range(0, len(texts), rows):
        part = whole(world.tokenizer, texts[k : k + rows])
        out = tower(world.model).decoder(**part.inputs(), position_ids=part.positions, use_cache=False)
        found.append(out.last_hidden_state[:, -1])
    save_file({"states": torch.cat(found)}, path)


def flipped(labels: Tensor, places: Tensor, share: float, generator: Generator) -> Tensor:
    """Labels of which a share of those in some places are wrong."""
    wrong = places[torch.randperm(len(places), generator=generator)[: round(share * len(places))]]
    return labels.scatter(0, wrong, 1 - labels[wrong])
