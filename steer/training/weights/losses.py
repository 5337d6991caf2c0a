"""Objectives: a task's loss on batches that it draws, and what methods add to it."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, kl_div, normalize

from steer.training.handle import Handle
from steer.training.loop import Logged, Loss
from steer.training.method import Objective
from steer.training.weights.collect import Criterion
from steer.training.weights.mixout import Grain, mixout
from steer.training.weights.task import Learnable, asked


def supervised(size: int, anchor: float = 0.0) -> Objective:
    """The task's loss on batches of `size`, plus anchor x sum |w - w_start| / all parameters of the model (LT-SFT)."""

    def objective(handle: Handle, task: Learnable) -> Loss:
        whole = sum(parameter.numel() for parameter in handle.model.parameters())

        def loss(generator: Generator, step: int) -> tuple[Tensor, Logged]:
            value = task.loss(handle.model, task.batch(generator, size))
            if anchor:
                moved = sum((p - handle.start[name]).abs().sum() for name, p in handle.parameters.items())
                value = value + anchor * moved / whole
            return value, {}

        return loss

    return objective


def mixed(size: int, p: float, grain: Grain) -> Objective:
    """The task's loss under mixout, one draw a batch."""

    def objective(handle: Handle, task: Learnable) -> Loss:
        def loss(generator: Generator, step: int) -> tuple[Tensor, Logged]:
            batch = task.batch(generator, size)
            with mixout(handle, p, grain, generator):
                return task.loss(handle.model, batch), {}

        return loss

    return objective


def keeping(size: int) -> Objective:
    """The task's loss; and for a link to use, the gradient of KL(start || now) of the predictions, summed over a step.

    It is in `handle.extra["keep"]`.
    """

    def objective(handle: Handle, task: Learnable) -> Loss:
        logits = asked(task, "logits")

        def loss(generator: Generator, step: int) -> tuple[Tensor, Logged]:
            batch = task.batch(generator, size)
            with torch.no_grad(), handle.using(handle.start):
                reference = logits(handle.model, batch).log_softmax(-1)
            now = logits(handle.model, batch).log_softmax(-1)
            apart = kl_div(now, reference, log_target=True, reduction="batchmean")
            gradients = torch.autograd.grad(apart, list(handle.parameters.values()), materialize_grads=True)
            kept = handle.extra.setdefault("keep", {})
            for name, gradient in zip(handle.parameters, gradients):
                kept[name] = kept.get(name, 0) + gradient
            return task.loss(handle.model, batch), {"kl": apart.item()}

        return loss

    return objective


def few_shot(size: int, unlikelihood: float = 1.0, ranking: float = 1.0) -> Objective:
    """T-Few's loss on a task with choices, see `choice_losses`."""

    def objective(handle: Handle, task: Learnable) -> Loss:
        choices = asked(task, "choices")

        def loss(generator: Generator, step: int) -> tuple[Tensor, Logged]:
            likely, unlikely, ranked = choice_losses(*choices(handle.model, task.batch(generator, size)))
            noted = {"likely": likely.item(), "unlikely": unlikely.item(), "ranked": ranked.item()}
            return likely + unlikelihood * unlikely + ranking * ranked, noted

        return loss

    return objective


def choice_losses(logp: Tensor, counts: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Likelihood, unlikelihood and length-normalised ranking of T-Few, arXiv 2205.05638.

    logp    (b, choices, tokens)
    counts  the same shape, bool: which tokens are of the choice; none are of a choice that an example has not
    right   (b,) number of the right choice

    -mean log p over tokens of right choices; -mean log(1 - p + 0.01) over tokens of wrong ones; cross-entropy of
    choices by their mean log p.
    """
    chosen = torch.zeros_like(counts[..., 0]).scatter(1, right[:, None], True)[..., None] & counts
    others = counts & ~chosen
    likely = -logp[chosen].mean()
    unlikely = -torch.log(1 - logp[others].exp() + 0.01).sum() / others.sum().clamp_min(1)
    lengths = counts.sum(-1)
    means = logp.masked_fill(~counts, 0).sum(-1) / lengths.clamp_min(1)
    return likely, unlikely, cross_entropy(means.masked_fill(lengths == 0, -torch.inf), right)


def contrastive(task: Learnable) -> Criterion:
    """The supervised contrastive loss of a task's features, for GPS."""
    features = asked(task, "features")
    return lambda model, batch: contrast(*features(model, batch))


def contrast(features: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """Mean over anchors of -log softmax of similarity / temperature at the others of its label: arXiv 2004.11362.

    Features (n, d) are set to length 1; an anchor never counts itself; one that is alone with its label is left out.
    """
    unit = normalize(features, dim=-1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    logp = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf).log_softmax(-1)
    alike = (labels[:, None] == labels) & ~itself
    partners = alike.sum(-1)
    return -(logp.masked_fill(~alike, 0).sum(-1)[partners > 0] / partners[partners > 0]).mean()
