"""Methods that are about texts: what is learnt of which answers. Each is a row of parts, with its paper.

All train a LoRA of alpha = 2 rank on the targets, ends of names of linear layers; none: all but the output head. For
another parametrisation of plain supervised tuning see the table of `steer.training.weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from torch import Tensor

from steer.training.handle import Handle
from steer.training.method import Method, Objective, Phase
from steer.training.text.grpo import GRPO
from steer.training.text.likelihood import Likelihood, rectified
from steer.training.text.scores import grand, hardest, scored
from steer.training.text.subset import DynamicSubset
from steer.training.text.task import TextTask
from steer.training.weights.attach import lora
from steer.training.weights.methods import adamw

Names = tuple[str, ...]


Spread = Literal["group", "batch", "none"]


def text_sft(batch: int = 8, rank: int = 8, lr: float = 2e-4, targets: Names = ()) -> Method:
    """Supervised tuning: cross-entropy of the answers' tokens."""
    return Method("2106.09685", (_phase(partial(Likelihood, batch=batch), rank, lr, targets),))


def dft(batch: int = 8, rank: int = 8, lr: float = 2e-4, targets: Names = ()) -> Method:
    """DFT: the same, each token weighted by its own probability; for questions that many answers would do for."""
    return Method("2508.05629", (_phase(partial(Likelihood, batch=batch, weight=rectified), rank, lr, targets),))


def grpo(
    prompts: int = 4,
    each: int = 8,
    updates: int = 1,
    clip: float = 0.2,
    beta: float = 0.0,
    spread: Spread = "group",
    rank: int = 8,
    lr: float = 1e-4,
    targets: Names = (),
) -> Method:
    """GRPO: policy gradient on a reward of answers, against the mean of those to one prompt."""
    dials = {"prompts": prompts, "each": each, "updates": updates, "clip": clip, "beta": beta, "spread": spread}
    return Method("2402.03300", (_phase(partial(GRPO, **dials), rank, lr, targets),))


def sft_grpo(
    share: float = 0.2,
    batch: int = 8,
    prompts: int = 4,
    each: int = 8,
    updates: int = 1,
    clip: float = 0.2,
    beta: float = 0.0,
    spread: Spread = "group",
    rank: int = 8,
    lr: float = 1e-4,
    targets: Names = (),
) -> Method:
    """GRPO after a share of the steps on examples, which gives rewards the spread that it learns from."""
    (main,) = grpo(prompts, each, updates, clip, beta, spread, rank, lr, targets).phases
    warm = replace(main, objective=partial(Likelihood, batch=batch), share=share)
    return Method("2310.20703", (warm, replace(main, parametrise=None, share=1 - share)))


def data_diet(
    score: Literal["el2n", "grand"] = "el2n",
    keep: float = 0.7,
    top: float = 0.0,
    share: float = 0.2,
    batch: int = 8,
    rank: int = 8,
    lr: float = 2e-4,
    targets: Names = (),
) -> Method:
    """Supervised tuning on the hardest examples, as a first share of the steps on all of them tells; it is undone."""

    def pool(handle: Handle, task: TextTask) -> Tensor:
        with handle.using(handle.reached):
            return hardest(scored(task) if score == "el2n" else grand(handle, task), keep, top)

    (first,) = text_sft(batch, rank, lr, targets).phases
    second = replace(first, objective=partial(Likelihood, batch=batch, pool=pool), parametrise=None, share=1 - share)
    return Method("2211.05610", (replace(first, share=share, end="rewind"), second))


def dynamic_subset(
    keep: float = 0.5,
    top: float = 0.0,
    warm: int = 2,
    cycle: int = 2,
    smooth: float = 0.8,
    batch: int = 8,
    rank: int = 8,
    lr: float = 2e-4,
    targets: Names = (),
) -> Method:
    """Supervised tuning on the hardest examples, chosen anew every few epochs."""
    dials = {"keep": keep, "top": top, "warm": warm, "cycle": cycle, "smooth": smooth}
    return Method("2306.03208", (_phase(partial(DynamicSubset, batch=batch, **dials), rank, lr, targets),))


def _phase(objective: Objective, rank: int, lr: float, targets: Names) -> Phase:
    return Phase(objective, adamw(lr, 0.0), lora(rank, 2 * rank, targets))


METHODS: dict[str, Callable[..., Method]] = {
    row.__name__: row for row in (text_sft, dft, grpo, sft_grpo, data_diet, dynamic_subset)
}
