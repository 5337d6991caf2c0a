"""The methods of `benchmarks.weights`, what some are compared with, and their dials on a model of 5M numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from steer.training.diffusion.methods import METHODS as OF_DIFFUSION
from steer.training.method import Method, Phase
from steer.training.weights import attach
from steer.training.weights.chain import update
from steer.training.weights.losses import supervised
from steer.training.weights.methods import METHODS as OF_WEIGHTS

INNER = ("net.2",)
KEYS = ("to_k", "to_v", "add_k_proj", "add_v_proj")
TARGETS = (*KEYS, "to_q", "to_out.0", "to_add_out", "net.0.proj", *INNER)
"""Attention and feed-forwards, of pictures and text. Without the text's queries: the last block's get no gradient."""
BATCH = 8


class Entry(NamedTuple):
    """A method as it is run.

    row       (lr, dials) -> Method
    lr        the middle one of those tried
    measures  beside those of all, see `measured`; "start" is the loss before the first step
    models    are tuned first, on parts of the pictures and for half of the budget, and merged
    content   what a start asks of data it asks of known pictures
    tried     False: at `lr` alone, where the loss of the new style is not what the method is for
    merges    False: it has no place in the model's weights
    """

    row: Callable[..., Method]
    lr: float
    dials: dict[str, Any]
    measures: tuple[str, ...] = ()
    models: int = 0
    content: bool = False
    tried: bool = True
    merges: bool = True


def plain(rank: int, alpha: float, lr: float, targets: tuple[str, ...]) -> Method:
    """LoRA by SGD: ProGrad without what it adds."""
    rule = update(partial(torch.optim.SGD, lr=lr))
    return Method("2106.09685", (Phase(supervised(BATCH), rule, attach.lora(rank, alpha, targets)),))


def of_weights(name: str, lr: float, **dials: Any) -> Entry:
    apart = {key: dials.pop(key) for key in ("measures", "models", "content") if key in dials}
    targets = {} if name == "supermerge" else {"targets": TARGETS}
    return Entry(OF_WEIGHTS[name], lr, {**targets, **dials}, **apart)


def of_diffusion(name: str, lr: float, **dials: Any) -> Entry:
    """`BATCH` pictures at one level in each loss of those that denoise."""
    apart = {key: dials.pop(key) for key in ("measures", "tried", "merges") if key in dials}
    batch = {} if name in ("softrepa", "ant") else {"batch": BATCH, "levels": 1}
    return Entry(OF_DIFFUSION[name], lr, {**batch, **dials}, **apart)


PAIR = {"rank": 16, "alpha": 32}
SMALL = {"rank": 4, "alpha": 8}
FACTORS = {"targets": KEYS, "feedforward": INNER}
ENTRIES: dict[str, Entry] = {
    "full": of_weights("full", 1e-4),
    "lion": of_weights("lion", 5e-5),
    "lora": of_weights("lora", 1e-3, **PAIR),
    "lora of rank 4": of_weights("lora", 1e-3, **SMALL),
    "lora of rank 64": of_weights("lora", 1e-3, rank=64, alpha=128),
    "qlora": of_weights("qlora", 1e-3, **PAIR),
    "ia3": of_weights("ia3", 3e-2, **FACTORS),
    "t_few": of_weights("t_few", 1e-2, **FACTORS),
    "corda": of_weights("corda", 3e-4, rank=16, examples=32),
    "corda, kpm": of_weights("corda", 3e-4, mode="kpm", rank=16, examples=32, content=True),
    "lora_one": of_weights("lora_one", 1e-3, rank=16, measures=("start",)),
    "lora_pro": of_weights("lora_pro", 3e-4, **PAIR),
    "chain_of_lora": of_weights("chain_of_lora", 1e-3, **SMALL),
    "oft": of_weights("oft", 5e-4),
    "boft": of_weights("boft", 2e-3),
    "diablo": of_weights("diablo", 1e-3, blocks=8),
    "gps": of_weights("gps", 5e-3, biases=False, examples=8),
    "random, a row": of_weights("speft", 5e-3, score="random", amount=1, scope="row"),
    "speft": of_weights("speft", 2e-3, examples=32),
    "random, 1 %": of_weights("speft", 2e-3, score="random"),
    "lt_sft": of_weights("lt_sft", 3e-3),
    "gmt": of_weights("gmt", 1e-4),
    "cgnc": of_weights("cgnc", 1e-4),
    "prograd": of_weights("prograd", 2.0, **PAIR),
    "lora by sgd": Entry(plain, 2.0, {"targets": TARGETS, **PAIR}),
    "sparse_mezo": of_weights("sparse_mezo", 1e-3),
    "mezo": of_weights("sparse_mezo", 3e-4, sparsity=0.0),
    "mixout": of_weights("mixout", 5e-4),
    "supermerge": of_weights("supermerge", 3e-2, models=3, examples=16, measures=("start",)),
    "sft": of_diffusion("sft", 2e-3),
    "weighted_sft": of_diffusion("weighted_sft", 2e-3),
    "emu": of_diffusion("emu", 1e-4, measures=("named", "styled")),
    "style_tailoring": of_diffusion("style_tailoring", 1e-4, measures=("styled",)),
    "oft_sft": of_diffusion("oft_sft", 3e-3),
    "coft_sft": of_diffusion("coft_sft", 3e-3, constraint=0.1),
    "softrepa": of_diffusion("softrepa", 1e-3, bins=20, measures=("retrieved",), tried=False, merges=False),
    "ant": of_diffusion("ant", 5e-4, losses=4, seeds=2, measures=("named", "concept"), tried=False),
}
"""Every row of steer/training/weights, with what it is to be compared with, and those of steer/training/diffusion that
no reward drives. Where an example of a data pass costs a row with a gradient, there are fewer than in the papers."""


def missing() -> set[str]:
    """Rows of the two tables that no entry runs: those that a reward drives."""
    rows = {entry.row for entry in ENTRIES.values()}
    return {name for table in (OF_WEIGHTS, OF_DIFFUSION) for name, row in table.items() if row not in rows}
