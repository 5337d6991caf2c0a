"""How much an example has to teach: its error, the gradient that it gives, and which examples to keep for that.

Of examples (arXiv 2107.07075); with pretrained models the scores mean little before about one epoch of training, and
the very highest are often wrong labels (arXiv 2211.05610).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from steer.language.scoring import chunks
from steer.training.handle import Handle
from steer.training.text.task import TextTask

Score = Callable[[Tensor, Tensor], Tensor]
"""(logits (tokens, classes), the right ones (tokens,)) -> (tokens,), high for what is hard."""


def el2n(logits: Tensor, ids: Tensor) -> Tensor:
    """|p - onehot(y)| = sqrt(sum p^2 - 2 p_y + 1), from 0 to sqrt 2."""
    p = logits.softmax(-1)
    return (p.square().sum(-1) - 2 * _of(p, ids) + 1).clamp_min(0).sqrt()


def nll(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p_y."""
    return F.cross_entropy(logits, ids, reduction="none")


def margin(logits: Tensor, ids: Tensor) -> Tensor:
    """The largest p of the others - p_y."""
    p = logits.softmax(-1)
    return p.scatter(-1, ids[:, None], -1.0).amax(-1) - _of(p, ids)


def entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """- sum p log p: what is right does not matter."""
    return torch.special.entr(logits.softmax(-1)).sum(-1)


def head_gradient(logits: Tensor, ids: Tensor, states: Tensor, bias: bool = True) -> Tensor:
    """GraNd of the last linear layer alone, without a backward pass: |p - y| sqrt(|h|^2 + 1) for states h (tokens, d).

    bias  the layer has one; else |p - y| |h|
    """
    return el2n(logits, ids) * (states.square().sum(-1) + float(bias)).sqrt()


@torch.no_grad()
def scored(task: TextTask, score: Score = el2n) -> Tensor:
    """The mean score over the tokens of each example's answer, (examples,) float32, of one forward pass."""
    rows, found = task.rows, torch.empty(len(task.rows))
    for index in chunks(rows, task.model.get_input_embeddings().weight.shape[0]):
        logits, ids, row = task.answers(rows.take(index))
        sums = logits.new_zeros(len(index)).index_add(0, row, score(logits, ids))
        found[index] = (sums / row.bincount(minlength=len(index))).float().cpu()
    return found


def grand(handle: Handle, task: TextTask) -> Tensor:
    """GraNd, the norm of the gradient of each example's own mean loss in all that is trained, (examples,) float32."""
    norms, wanted = [], list(handle.parameters.values())
    for k in range(len(task.rows)):
        loss = task.loss(task.model, task.rows.take(torch.tensor([k])))
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        norms.append(torch.nn.utils.get_total_norm([g for g in gradients if g is not None]).float().cpu())
    return torch.stack(norms)


def hardest(scores: Tensor, keep: float, top: float = 0.0) -> Tensor:
    """Places of the share `keep` with the highest scores, after the share `top` of the very highest; ascending.

    Raises ValueError for shares that do not fit.
    """
    if not (0 < keep <= 1 and top >= 0 and keep + top <= 1):
        raise ValueError(f"keep {keep} after the top {top} of all examples: expected shares, together at most 1.")
    first = round(top * len(scores))
    count = min(max(1, math.ceil(keep * len(scores) - 1e-9)), len(scores) - first)
    return scores.argsort(descending=True, stable=True)[first : first + count].sort().values


def _of(p: Tensor, ids: Tensor) -> Tensor:
    return p.gather(-1, ids[:, None])[:, 0]
