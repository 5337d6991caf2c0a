"""MELBO: a direction that no one asked for, found because it changes much downstream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from steer.language.data import whole
from steer.language.extract.fitting import described
from steer.language.hooks import hooked
from steer.language.record import norms, recording, run
from steer.language.tower import Site, resolved, tower
from steer.language.vectors import SteeringVector


def melbo(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    radius: float,
    *,
    source: int = 7,
    target: int = -9,
    power: float = 2.0,
    apart_from: Sequence[SteeringVector] = (),
    steps: int = 300,
    lr: float = 1e-3,
    generator: Generator | None = None,
) -> SteeringVector:
    """An unsupervised steering vector: the push behind block `source` that moves block `target` the most.

    theta = argmax_{|theta| = R} sum_prompts (sum_tokens |h_target(theta) - h_target(0)|^p)^(1 / p), by AdamW on the
    sphere: the gradient's tangent part, a step, back to radius R. (Mack and Turner, "Mechanistically eliciting latent
    behaviors in language models", 2024; its code takes block 7, the input of the 8th block from the end, p = 2, 300
    steps of 1e-3.) What comes back depends on R more than on all else: too small does nothing, too large breaks text.

    prompts     complete texts; one batch
    radius      R, in units of the states; `strength` 1 with relative=False, keep_norm=False applies it as found
    target      layer, behind `source`
    apart_from  earlier vectors at `source`, to be orthogonal to
    generator   of the start on the sphere, on the CPU

    Raises ValueError for radius <= 0, a target that is not behind the source, and more vectors than dimensions.
    """
    place, goal = resolved(model, source), resolved(model, target)
    if radius <= 0 or goal.layer <= place.layer:
        raise ValueError(
            f"radius {radius}, source {place}, target {goal}: expected radius > 0 and a target behind the source."
        )
    tokens = whole(tokenizer, prompts).inputs()
    taken = _basis(apart_from, place, tower(model).width)
    start = torch.randn(tower(model).width, generator=generator)
    theta = (radius * _unit(start - taken @ (taken.mT @ start))).to(model.device).requires_grad_()
    taken = taken.to(model.device)
    gain = _gain(model, tokens, place, goal, power)
    optimizer = torch.optim.AdamW([theta], lr=lr, betas=(0.9, 0.98), weight_decay=0.0, amsgrad=True)
    for _ in range(steps):
        (slope,) = torch.autograd.grad(-gain(theta), theta)
        theta.grad = _tangent(slope, theta.detach(), taken)
        optimizer.step()
        with torch.no_grad():
            theta.copy_(radius * _unit(theta - taken @ (taken.mT @ theta)))
    about = described(model, "melbo", prompts) | {"radius": f"{radius:g}", "target": str(goal)}
    return SteeringVector({place: theta.cpu()}, norms(model, tokens, [place]), about)


def _gain(model: Any, tokens: dict[str, Tensor], place: Site, goal: Site, power: float) -> Callable[[Tensor], Tensor]:
    """theta -> sum over prompts of (sum over tokens of |h(theta) - h(0)|^p)^(1 / p) behind `goal`."""

    def states(theta: Tensor | float) -> Tensor:
        push = hooked(model, [(place, lambda hidden: (hidden + theta).to(hidden.dtype))])
        with push, recording(model, [goal], gradient=True) as found:
            run(model, tokens)
        return found[goal][-1]

    with torch.no_grad():
        plain = states(0.0)
    real = tokens["attention_mask"].bool().to(plain.device)

    def gain(theta: Tensor) -> Tensor:
        moved = (states(theta) - plain).float().norm(dim=-1)
        return moved.where(real, 0).pow(power).sum(1).pow(1 / power).sum()

    return gain


def _basis(vectors: Sequence[SteeringVector], place: Site, width: int) -> Tensor:
    """Orthonormal columns (d, k) that span the earlier directions."""
    if len(vectors) >= width:
        raise ValueError(f"{len(vectors)} earlier vectors in {width} dimensions: expected fewer, or none is left.")
    if not vectors:
        return torch.zeros(width, 0)
    return torch.linalg.qr(torch.stack([v[place].directions[place].cpu() for v in vectors], 1))[0]


def _tangent(slope: Tensor, theta: Tensor, taken: Tensor) -> Tensor:
    slope = slope - taken @ (taken.mT @ slope)
    u = _unit(theta)
    return slope - (slope @ u) * u


def _unit(v: Tensor) -> Tensor:
    return v / v.norm()
