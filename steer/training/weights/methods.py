"""Methods that are about weights: what is trained, and how it moves. Each is a row of parts, with its paper.

Defaults are the papers' where they name one. `lr` is that of AdamW and `decay` its weight decay, unless a row says
another optimizer. `size` examples are in a batch. `targets` are the ends of names of linear layers; none: all of them
but a language model's head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch

from steer.training.method import Method, Optim, Phase
from steer.training.weights import attach, starts
from steer.training.weights.chain import aligned, clip_each, masked, top_gradient, update
from steer.training.weights.layers import BlockDiagonal, Butterfly, around
from steer.training.weights.losses import contrastive, few_shot, keeping, mixed, supervised
from steer.training.weights.merging import merging, validated
from steer.training.weights.mixout import Grain
from steer.training.weights.pairs import LoraPro, preconditioned
from steer.training.weights.scores import salient
from steer.training.weights.select import Scope
from steer.training.weights.zeroth import forward_only

Names = tuple[str, ...]


def adamw(lr: float, decay: float, *links: Any, masks: Any = None) -> Optim:
    """AdamW behind the links, and under the masks."""
    return update(partial(torch.optim.AdamW, lr=lr, weight_decay=decay), *links, masks=masks)


def full(lr: float = 2e-5, decay: float = 0.0, size: int = 8, targets: Names = ()) -> Method:
    """Full fine-tuning of the linear layers: what "LoRA learns less and forgets less" compares LoRA with."""
    return Method("2405.09673", (Phase(supervised(size), adamw(lr, decay), attach.weights(targets)),))


def lion(lr: float = 1e-5, decay: float = 0.0, size: int = 8, targets: Names = ()) -> Method:
    """Full fine-tuning by Lion, from timm: w <- w - lr (sign(0.9 m + 0.1 g) + decay w), m <- 0.99 m + 0.01 g."""

    def rule(parameters: Any) -> torch.optim.Optimizer:
        from timm.optim import Lion

        return Lion(parameters, lr=lr, weight_decay=decay)

    return Method("2302.06675", (Phase(supervised(size), update(rule), attach.weights(targets)),))


def lora(
    rank: int = 16, alpha: float = 32, lr: float = 2e-4, decay: float = 0.0, size: int = 8, targets: Names = ()
) -> Method:
    """LoRA: W0 + (alpha / rank) B A."""
    return Method("2106.09685", (Phase(supervised(size), adamw(lr, decay), attach.lora(rank, alpha, targets)),))


def qlora(
    rank: int = 64, alpha: float = 16, lr: float = 2e-4, decay: float = 0.0, size: int = 8, targets: Names = ()
) -> Method:
    """QLoRA: LoRA beside a base that was loaded in 4 bits."""
    return Method("2305.14314", (Phase(supervised(size), adamw(lr, decay), attach.quantised(rank, alpha, targets)),))


def lora_one(
    rank: int = 8,
    alpha: float = 16,
    gamma: float = 128.0,
    damping: float = 0.0,
    examples: int = 8,
    seed: int = 0,
    lr: float = 2e-4,
    decay: float = 0.0,
    size: int = 8,
    targets: Names = (),
) -> Method:
    """LoRA-One: LoRA from one damped step down the full gradient; with damping, preconditioned after that as well."""
    start = starts.lora_one(rank, alpha, targets, gamma, 1, examples, seed)
    links = [preconditioned(damping)] if damping else []
    return Method("2502.01235", (Phase(supervised(size), adamw(lr, decay, *links), start),))


def lora_pro(
    rank: int = 8,
    alpha: float = 16,
    moments: Literal["full", "factors"] = "full",
    lr: float = 2e-5,
    decay: float = 0.0,
    size: int = 8,
    targets: Names = (),
) -> Method:
    """LoRA-Pro: the factors move so that W moves as nearly as it can along the full gradient, or along Adam's step."""
    link = partial(LoraPro, moments=moments)
    rule = partial(torch.optim.SGD if moments == "full" else torch.optim.AdamW, lr=lr, weight_decay=decay)
    return Method("2407.18242", (Phase(supervised(size), update(rule, link), attach.lora(rank, alpha, targets)),))


def corda(
    mode: Literal["ipm", "kpm"] = "ipm",
    rank: int = 128,
    examples: int = 256,
    seed: int = 0,
    lr: float = 2e-5,
    decay: float = 0.0,
    size: int = 8,
    targets: Names = (),
) -> Method:
    """CorDA: LoRA that takes over the main (ipm) or the least (kpm) part of each weight under its inputs' covariance.

    The examples for the covariance are the task's own: for kpm they should be of the knowledge to be kept.
    """
    start = starts.corda(mode, rank, rank, targets, examples, seed)
    return Method("2406.05223", (Phase(supervised(size), adamw(lr, decay), start),))


def chain_of_lora(
    links: int = 3,
    rank: int = 8,
    alpha: float = 16,
    lr: float = 2e-4,
    decay: float = 0.0,
    size: int = 8,
    targets: Names = (),
) -> Method:
    """Chain of LoRA: several in turn, each merged before the next begins with an optimizer of its own."""
    parts = supervised(size), adamw(lr, decay), attach.lora(rank, alpha, targets)
    return Method("2401.04151", tuple(Phase(*parts, share=1 / links, end="merge") for _ in range(links)))


def diablo(blocks: int = 64, lr: float = 5e-4, decay: float = 0.0, size: int = 8, targets: Names = ()) -> Method:
    """DiaBlo: a block-diagonal matrix beside each layer."""
    layers = around(partial(BlockDiagonal, blocks=blocks), targets)
    return Method("2506.03230", (Phase(supervised(size), adamw(lr, decay), layers),))


def oft(
    block: int = 32,
    constraint: float | None = None,
    lr: float = 1e-4,
    decay: float = 0.0,
    size: int = 8,
    targets: Names = (),
) -> Method:
    """OFT: W0 R with R orthogonal in blocks; a constraint on how far each turns makes it COFT."""
    turned = attach.rotated(block, targets, constraint)
    return Method("2306.07280", (Phase(supervised(size), adamw(lr, decay), turned),))


def boft(
    block: int = 4, factors: int = 2, lr: float = 2e-4, decay: float = 0.0, size: int = 8, targets: Names = ()
) -> Method:
    """BOFT: W0 R^T with R a product of butterfly factors."""
    layers = around(partial(Butterfly, block=block, factors=factors), targets)
    return Method("2311.06243", (Phase(supervised(size), adamw(lr, decay), layers),))


def ia3(
    lr: float = 3e-3, size: int = 8, targets: Names = ("k_proj", "v_proj"), feedforward: Names = ("down_proj",)
) -> Method:
    """(IA)^3: factors on keys, values and the inside of feed-forwards, by Adafactor."""
    rule = partial(torch.optim.Adafactor, lr=lr)
    return Method("2205.05638", (Phase(supervised(size), update(rule), attach.scaling(targets, feedforward)),))


def t_few(
    unlikelihood: float = 1.0,
    ranking: float = 1.0,
    lr: float = 3e-3,
    size: int = 8,
    targets: Names = ("k_proj", "v_proj"),
    feedforward: Names = ("down_proj",),
) -> Method:
    """T-Few: (IA)^3 on a task with choices, with unlikelihood of wrong ones and a length-normalised ranking."""
    rule, loss = partial(torch.optim.Adafactor, lr=lr), few_shot(size, unlikelihood, ranking)
    return Method("2205.05638", (Phase(loss, update(rule), attach.scaling(targets, feedforward)),))


def gps(
    each: int = 1,
    score: Literal["contrastive", "task"] = "task",
    biases: bool = True,
    dense: Names = (),
    examples: int = 64,
    lr: float = 1e-3,
    decay: float = 0.0,
    size: int = 8,
    targets: Names = (),
) -> Method:
    """GPS: of each neuron the inputs with the largest gradients, with biases and a head (`dense`) trained whole.

    The paper scores by a contrastive loss of two views; the task's loss is for tasks without views.
    """
    given = {"loss": contrastive} if score == "contrastive" else {}
    chosen = salient("gradient", each, "row", targets, examples=examples, size=size, **given)
    return Method(
        "2312.10136", (Phase(supervised(size), adamw(lr, decay), attach.weights(targets, biases, dense), chosen),)
    )


def speft(
    score: str = "gradient",
    amount: int | float = 0.01,
    scope: Scope = "model",
    rounds: int = 1,
    examples: int = 64,
    seed: int = 0,
    lr: float = 5e-5,
    decay: float = 0.0,
    size: int = 8,
    targets: Names = (),
) -> Method:
    """SPEFT: the entries that a score of the zoo says, a count or a fraction; chosen anew in each round."""
    chosen = salient(score, amount, scope, targets, examples=examples, seed=seed)
    phase = partial(Phase, supervised(size), adamw(lr, decay), select=chosen, share=1 / rounds)
    return Method("2412.13488", (phase(attach.weights(targets)), *(phase() for _ in range(rounds - 1))))


def lt_sft(
    amount: int | float = 0.01,
    anchor: float = 0.0,
    lr: float = 2e-5,
    decay: float = 0.0,
    size: int = 8,
    targets: Names = (),
) -> Method:
    """LT-SFT: train all, keep the entries that moved most, go back, train those alone; the difference composes."""
    phase = partial(Phase, supervised(size, anchor), adamw(lr, decay), share=0.5)
    chosen = salient("movement", amount, "model", targets)
    return Method("2110.07560", (phase(attach.weights(targets), end="rewind"), phase(select=chosen)))


def gmt(
    fraction: float = 0.2,
    where: Literal["gradient", "update"] = "gradient",
    lr: float = 2e-5,
    decay: float = 0.0,
    size: int = 8,
    targets: Names = (),
) -> Method:
    """GMT: in each step the entries with the largest gradients. The paper masks the gradient, so that AdamW still moves
    the others by what it remembers; a mask of the update stops them."""
    top = partial(top_gradient, fraction=fraction)
    rule = adamw(lr, decay, masks=top) if where == "update" else adamw(lr, decay, masked(top))
    return Method("2406.15330", (Phase(supervised(size), rule, attach.weights(targets)),))


def cgnc(limit: float = 0.05, lr: float = 2e-5, decay: float = 0.0, size: int = 8, targets: Names = ()) -> Method:
    """CGNC: the gradient of each tensor is clipped by its own norm."""
    rule = adamw(lr, decay, clip_each(limit))
    return Method("2210.10325", (Phase(supervised(size), rule, attach.weights(targets), clip=False),))


def prograd(
    strength: float = 1.0, rank: int = 16, alpha: float = 32, lr: float = 2e-3, size: int = 8, targets: Names = ()
) -> Method:
    """ProGrad: SGD along the gradient without what opposes the start's predictions. The paper trains prompts, here a
    LoRA."""
    rule = update(partial(torch.optim.SGD, lr=lr), aligned(strength))
    return Method("2205.14865", (Phase(keeping(size), rule, attach.lora(rank, alpha, targets)),))


def mixout(
    p: float = 0.9, grain: Grain = "element", lr: float = 2e-5, decay: float = 0.0, size: int = 8, targets: Names = ()
) -> Method:
    """Mixout: each step sees a random part of the weights as they were."""
    return Method("1909.11299", (Phase(mixed(size, p, grain), adamw(lr, decay), attach.weights(targets)),))


def sparse_mezo(
    sparsity: float = 0.75,
    eps: float = 1e-3,
    static: bool = False,
    seed: int = 0,
    lr: float = 1e-6,
    size: int = 8,
    targets: Names = (),
) -> Method:
    """Sparse MeZO: the smallest weights of each layer move along random directions, by two forward passes a step."""
    small = salient("magnitude", round(1 - sparsity, 9), "tensor", targets, keep="smallest")
    return Method(
        "2402.15751", (Phase(supervised(size), forward_only(lr, eps, seed, static), attach.weights(targets), small),)
    )


def supermerge(
    files: Sequence[str] = (), sweep: bool = True, examples: int = 32, seed: int = 0, lr: float = 1e-2
) -> Method:
    """SUPERMERGE: difference files of models tuned from this one, each tensor of each with a weight that is learnt."""
    merged = merging(files, examples, seed, sweep)
    return Method("2412.10416", (Phase(validated(examples, seed), adamw(lr, 0.0), merged),))


METHODS: dict[str, Callable[..., Method]] = {
    row.__name__: row
    for row in (
        *(full, lion, lora, qlora, lora_one, lora_pro, corda, chain_of_lora, diablo, oft, boft, ia3, t_few),
        *(gps, speft, lt_sft, gmt, cgnc, prograd, mixout, sparse_mezo, supermerge),
    )
}
