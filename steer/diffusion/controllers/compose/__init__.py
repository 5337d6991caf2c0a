"""Composition: every thing of a prompt in the picture, with its attributes, where it should be.

All of it works on maps of attention, where a picture looks at the words of its prompt, of cross-attention (UNets,
PixArt) and joint attention (SD3, FLUX).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Adam

from steer.diffusion.control import Chain, During, chain, during
from steer.diffusion.controllers.compose.excite import AttentionStep
from steer.diffusion.controllers.compose.grammar import parse
from steer.diffusion.controllers.compose.initno import Attended, AttentionNoise
from steer.diffusion.controllers.compose.objectives import (
    TERMS,
    Align,
    Box,
    Excite,
    Fault,
    InBoxes,
    Loss,
    Repair,
    Seen,
    Separate,
)
from steer.diffusion.controllers.compose.reading import Reader
from steer.diffusion.controllers.compose.refine import Refined, refined
from steer.diffusion.controllers.compose.saga import SignalAligned
from steer.diffusion.controllers.compose.tokens import Tokenizers, positions
from steer.diffusion.controllers.compose.verify import Verdict, Verifier, verify
from steer.diffusion.controllers.compose.words import Constraints, Entity, Parse, Phrase, Relation, constraints
from steer.diffusion.controllers.gradients.priors import Shifted

__all__ = [
    "Align",
    "AttentionNoise",
    "AttentionStep",
    "Constraints",
    "Entity",
    "Excite",
    "Fault",
    "InBoxes",
    "Phrase",
    "Reader",
    "Refined",
    "Relation",
    "Repair",
    "Seen",
    "Separate",
    "SignalAligned",
    "Verdict",
    "Verifier",
    "aligned",
    "attend_and_excite",
    "constraints",
    "in_boxes",
    "initno",
    "parse",
    "positions",
    "refined",
    "saga",
    "saga_plus",
    "verify",
]


def attend_and_excite(
    network: nn.Module,
    tokenizer: Tokenizers,
    strength: float = 20.0,
    stop: float = 0.5,
    thresholds: Mapping[float, float] = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8},
    parse: Parse = parse,
    side: int | None = None,
    padding: bool = True,
) -> During:
    """Attend-and-Excite (arXiv 2301.13826): x <- x - strength sqrt(r) grad max_s (1 - max A_s), r from 1 to 1/2.

    At every step before progress `stop`, r over the whole run. thresholds: at a progress of the run the step is
    repeated until the least attended entity's peak reaches so much, 20 times at most. `strength` belongs to SD's
    latents; sweep it elsewhere.
    """
    aims = tuple((progress, 1 - peak) for progress, peak in thresholds.items())
    reader = Reader(network, tokenizer, parse, side=side, padding=padding)
    return during(AttentionStep(reader, Excite(), strength, refine=aims), 0.0, stop)


def aligned(
    network: nn.Module,
    tokenizer: Tokenizers,
    strength: float = 20.0,
    stop: float = 0.5,
    terms: tuple[str, ...] = TERMS,
    parse: Parse = parse,
    side: int | None = None,
    padding: bool = True,
) -> During:
    """Stage 1 of fine-grained alignment (arXiv 2503.06506): one step a step down its unified losses, see `Align`."""
    return during(
        AttentionStep(Reader(network, tokenizer, parse, side=side, padding=padding), Align(terms), strength), 0.0, stop
    )


def initno(
    network: nn.Module,
    tokenizer: Tokenizers,
    iterations: int = 50,
    lr: float = 0.01,
    weight: float = 1.0,
    enough: float | None = 0.2,
    loss: Loss = Excite(),
    parse: Parse = parse,
    side: int | None = None,
    padding: bool = True,
) -> AttentionNoise:
    """InitNO (arXiv 2404.04650): mean and variance of the initial noise, by Adam, until the loss is `enough` for all.

    weight times the KL from N(0, 1) is added. Of its losses this is the cross-attention response; its self-attention
    conflict, for which `loss=Separate()` stands, and the two small cleaning terms are left out, and n particles are in
    the place of rounds from new noise. The paper goes on with steps such as `attend_and_excite`: put both in a list.
    """
    climbed, adam = Attended(Reader(network, tokenizer, parse, side=side, padding=padding), loss), partial(Adam, lr=lr)
    least = None if enough is None else -enough
    return AttentionNoise(climbed, iterations, adam, Shifted(), weight, None, 1, least, checkpointed=False)


def saga(
    network: nn.Module,
    tokenizer: Tokenizers,
    at: float = 0.2,
    iterations: int = 50,
    noises: int = 10,
    lr: float = 20.0,
    momentum: float = 0.4,
    shared: bool = True,
    loss: Loss = Separate(),
    parse: Parse = parse,
    side: int | None = None,
    padding: bool = True,
) -> SignalAligned:
    """SAGA (arXiv 2508.13866): one distribution over latents a prompt, learnt at one step, see `SignalAligned`.

    Defaults of SD 1.4 at 50 steps; SD3: at=0.18, noises=4, momentum=0.7. `lr` belongs to SD's latents.
    """
    reader = Reader(network, tokenizer, parse, side=side, padding=padding)
    return SignalAligned(reader, loss, at, iterations, noises, lr, momentum, shared)


def saga_plus(
    network: nn.Module,
    tokenizer: Tokenizers,
    at: float = 0.12,
    strength: float = 20.0,
    stop: float = 0.5,
    momentum: float = 0.1,
    loss: Loss = Separate(),
    **options: Any,
) -> Chain:
    """SAGA+: `saga` earlier, then a step of constant `strength` down the same loss at each step until `stop`.

    The paper's steps go down SynGen's loss; pass it as `loss` for both, or chain parts of your own. options as `saga`.
    """
    first = saga(network, tokenizer, at, momentum=momentum, loss=loss, **options)
    return chain(first, during(AttentionStep(first.reader, loss, strength, (1.0, 1.0)), at, stop))


def in_boxes(
    network: nn.Module,
    tokenizer: Tokenizers,
    boxes: Mapping[str, Box],
    at: float = 0.24,
    momentum: float = 0.1,
    **options: Any,
) -> SignalAligned:
    """SAGA with the retention loss of boxes: each named entity fills (left, top, right, bottom), 0 to 1 of the picture.

    options as `saga`.
    """
    return saga(network, tokenizer, at, momentum=momentum, loss=InBoxes(tuple(boxes.items())), **options)
