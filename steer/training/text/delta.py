"""Delta Activations: a fine-tuned, or a steered, model as one vector, the change of its final states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer.language.data import whole
from steer.language.tower import tower
from steer.training.handle import Handle

WRAPPERS = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.",
    "The task described below requires a response that completes the request accurately.",
    "Below is a description of a task. Provide a response that aligns with the requirements.",
    "The following instruction outlines a task. Generate a response that meets the specified request.",
    "You are given an instruction and input. Write a response that completes the task as requested.",
)
PROBES = tuple(
    f"{wrapper}\n\n### Instruction:\nPlease provide a response.\n\n### Input:\nInput.\n\n### Response:\n"
    for wrapper in WRAPPERS
)
"""Paraphrases of one instruction that asks for nothing."""


@torch.no_grad()
def probed(model: Any, tokenizer: Any, probes: Sequence[str] = PROBES) -> Tensor:
    """Mean over probes of the last token's final state, behind the last norm, (d,) float32, as the model is now.

    `probed` of a model that was tuned, or inside of `with steering(...)`, less `probed` of the base is its vector:
    Delta Activations, arXiv 2509.04442. For vectors of steering it is steer's own. One probe at a time, no padding.
    """
    states: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        states.append(output[0][0, -1].float())

    hook = tower(model).decoder.register_forward_hook(note)
    try:
        for probe in probes:
            model(**whole(tokenizer, [probe]).inputs(model.device), use_cache=False)
    finally:
        hook.remove()
    return torch.stack(states).mean(0)


def delta_activations(handle: Handle, tokenizer: Any, probes: Sequence[str] = PROBES) -> Tensor:
    """What training has changed, (d,): `probed` of the handle's model as it is less as it was at its start."""
    with handle.using(handle.start):
        base = probed(handle.model, tokenizer, probes)
    return probed(handle.model, tokenizer, probes) - base


def silhouette(vectors: Tensor, labels: Sequence[Any], clip: bool = True) -> float:
    """Mean silhouette, -1 to 1, of vectors (n, d) with labels under the distance 1 - cos; 0 for one of its kind.

    clip  opposite vectors are as far as orthogonal ones, as the authors have it

    Raises ValueError unless there are at least two labels.
    """
    kinds = list(dict.fromkeys(labels))
    if len(kinds) < 2 or len(labels) != len(vectors):
        raise ValueError(f"{len(vectors)} vectors, labels {list(labels)}: expected one each, and two different ones.")
    unit = F.normalize(vectors.double(), dim=1)
    apart = 1 - unit @ unit.T
    apart = apart.clamp(0, 1) if clip else apart.clamp_min(0)
    own = torch.tensor([kinds.index(label) for label in labels])
    member = F.one_hot(own, len(kinds)).double()
    sizes = member.sum(0)
    means = apart.fill_diagonal_(0) @ member / (sizes - member).clamp_min(1)
    inside = means.gather(1, own[:, None])[:, 0]
    nearest = means.masked_fill(member.bool(), torch.inf).amin(1)
    value = (nearest - inside) / torch.maximum(nearest, inside).clamp_min(1e-12)
    return value.where(sizes[own] > 1, 0.0).mean().item()
