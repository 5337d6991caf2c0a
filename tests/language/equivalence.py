"""What the equivalence suite compares: tiny models, ways of steering them, and how to run both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from tiny_models import SPECIAL, TEXT, text_model, tokens
from tiny_vlms import VISION, row_of, vision_inputs, vision_model
from torch import Tensor

from steer.language import Add, Clamp, Positions, Project, Rotate, SteeringVector, norms, steering
from steer.language.edits import Edit

ALL = [*TEXT, *VISION]
NEW = 5  # tokens that are generated
PADDED = 3  # columns of padding of the second row

EDITS: dict[str, tuple[Edit | str, dict[str, Any]]] = {
    "add": ("add", {"strength": 0.5}),
    "add, absolute": ("add", {"strength": 2.0, "relative": False}),
    "add, norm not kept": (Add(relative=False), {"strength": 2.0, "relative": False, "keep_norm": False}),
    "project": (Project(3.0), {"strength": 1.0}),
    "ablate": ("ablate", {"strength": 1.0, "keep_norm": False}),
    "clamp": (Clamp(3.0), {"strength": 1.0, "keep_norm": False}),
    "rotate": (Rotate(), {"strength": 0.6}),
}
MASK = torch.zeros(2, 12, dtype=torch.bool)
MASK[0, [2, 5, 11]] = MASK[1, [4, 11]] = True
SCOPES: dict[str, Any] = {
    "all": "all",
    "prompt": "prompt",
    "generated": "generated",
    "last": "last",
    "positions": Positions((1, -2)),
    "mask": MASK,
    "image": "image",  # of vision-language models
}


@dataclass(frozen=True, eq=False)
class Way:
    """One way of steering."""

    edit: str = "add"
    where: Any = "all"
    sites: Sequence[int | str] = (0, 1)
    seeds: Sequence[int] = (0,)  # one for each row's own vector
    change: dict[str, Any] = field(default_factory=dict)

    def on(self, name: str, **more: Any) -> AbstractContextManager[None]:
        vectors = [vector(name, tuple(self.sites), seed) for seed in self.seeds]
        edit, dials = EDITS[self.edit]
        settings = {"edit": edit, "where": self.where, **dials, **self.change, **more}
        return steering(model(name), vectors if len(vectors) > 1 else vectors[0], **settings)

    def of_row(self, row: int) -> Way:
        """The same for one row of the batch, run alone and without its padding."""
        change = dict(self.change)
        if isinstance(change.get("strength"), Sequence):
            change["strength"] = change["strength"][row]
        where = self.where[row : row + 1, row * PADDED :] if isinstance(self.where, Tensor) else self.where
        seeds = self.seeds if len(self.seeds) == 1 else (self.seeds[row],)
        return replace(self, change=change, where=where, seeds=seeds)


def model(name: str) -> Any:
    return text_model(name) if name in TEXT else vision_model(name)


def inputs(name: str) -> dict[str, Tensor]:
    """Two rows of 12 columns, the second left-padded."""
    return tokens(2, 12, padded=PADDED) if name in TEXT else vision_inputs(name, 2, words=5, padded=PADDED)


@cache
def vector(name: str, sites: tuple[int | str, ...], seed: int = 0) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    directions = {place: torch.randn(32, generator=generator) for place in sites}
    return SteeringVector(directions, norms(model(name), inputs(name), sites))


def greedy(name: str, given: dict[str, Tensor], **settings: Any) -> tuple[Tensor, Tensor]:
    """Tokens (rows, new) and the logits that they came from (rows, new, vocabulary)."""
    settings = {"do_sample": False, "output_logits": True, **settings}
    out = generate(name, given, **settings)
    return out.sequences[:, given["input_ids"].shape[1] :], torch.stack(out.logits, 1)


def generate(name: str, given: dict[str, Tensor], **settings: Any) -> Any:
    words = {"max_new_tokens": NEW, "min_new_tokens": NEW, "suppress_tokens": [*range(len(SPECIAL))]}  # no image tokens
    return model(name).generate(**given, **words, disable_compile=True, return_dict_in_generate=True, **settings)


@torch.no_grad()
def forward(name: str, given: dict[str, Tensor]) -> Tensor:
    return model(name)(**given, use_cache=False).logits


def same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], within: float = 3e-5) -> None:
    """Equal tokens, and logits or scores that differ by the rounding of float32 alone."""
    assert torch.equal(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1], atol=within * wanted[1].abs().max().item(), rtol=0)


def heard(found: Tensor, plain: Tensor, by: float = 1e-2) -> None:
    """That steering does something at all: else every equivalence would hold of nothing."""
    assert (found - plain).abs().max() > by * plain.std()


def rows_alone(name: str, way: Way, run: Any) -> list[Any]:
    """What `run` gives for each row by itself, unpadded, steered in its way."""
    found = []
    for row in range(2):
        with way.of_row(row).on(name):
            found.append(run(name, row_of(inputs(name), row)))
    return found


def answered(name: str, given: dict[str, Tensor], response: Tensor) -> dict[str, Tensor]:
    """Inputs with response tokens (rows, A) behind them, for teacher forcing: text that sees what is before it only."""
    causal = int(name.startswith("paligemma"))  # it reads a type 1 as that, the others a 0
    behind = {
        "input_ids": response,
        "attention_mask": torch.ones_like(response),
        "token_type_ids": torch.full_like(response, causal),
        "mm_token_type_ids": torch.zeros_like(response),
    }
    return {**given, **{key: torch.cat([given[key], more], 1) for key, more in behind.items() if key in given}}
