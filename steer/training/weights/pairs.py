"""Updates of LoRA pairs: W = W0 + s B A, with gradients g_A = s B^T g and g_B = s g A^T of the full gradient g."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steer.training.handle import Handle
from steer.training.weights.chain import Link, Parameters


class Pair(NamedTuple):
    """A (r, in), B (out, r) and the scaling s of a layer."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float


def pairs(model: nn.Module) -> Iterator[Pair]:
    """The LoRA pairs of a model. Raises ValueError where there is none."""
    from peft.tuners.lora import LoraLayer

    found = [
        Pair(layer.lora_A[key].weight, layer.lora_B[key].weight, layer.scaling[key])
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        for key in layer.lora_A
    ]
    if not found:
        raise ValueError(f"this {type(model).__name__} has no LoRA layers; parametrise it with LoRA.")
    yield from found


def adjusted(pair: Pair, g_a: Tensor, g_b: Tensor, damping: float = 1e-8) -> tuple[Tensor, Tensor]:
    """The gradients of A and B whose change of W, s (h_B A + B h_A), is nearest to the full gradient g.

    h_A = (B^T B)^-1 g_A / s^2 + X A and h_B = (I - B (B^T B)^-1 B^T) g_B (A A^T)^-1 / s^2 - B X. Any X (r, r) gives
    the same change of W; this one keeps h nearest to g: B^T B X + X A A^T = -(B^T B)^-1 g_A A^T / s^2. Where B is 0,
    h_A = g_A. LoRA-Pro, arXiv 2407.18242.
    """
    a, b, s = pair.a.detach(), pair.b.detach(), pair.scale
    eye = damping * torch.eye(len(a), dtype=a.dtype, device=a.device)
    left, right = b.T @ b + eye, a @ a.T + eye
    on_b = g_b @ torch.linalg.pinv(right, hermitian=True) / s**2
    if not b.any():
        return g_a, on_b
    inverse = torch.linalg.pinv(left, hermitian=True)
    on_a, on_b = inverse @ g_a / s**2, on_b - b @ (inverse @ (b.T @ on_b))
    (p, u), (q, v) = torch.linalg.eigh(left), torch.linalg.eigh(right)
    x = u @ ((u.T @ (-on_a @ a.T) @ v) / (p[:, None] + q)) @ v.T
    return on_a + x @ a, on_b - b @ x


class LoraPro:
    """A link that adjusts the gradients of all pairs, see `adjusted`.

    moments  "factors": none here, those of the optimizer behind act on the factors, an approximation
             "full": Adam's on the change of W, (out, in) for each layer; its direction is the gradient that the factors
             then follow, adjusted once more. For plain SGD behind.
    """

    def __init__(self, handle: Handle, moments: str, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        if moments not in ("factors", "full"):
            raise ValueError(f"moments {moments!r}: expected 'factors' or 'full'.")
        self.pairs, self.full, self.betas, self.eps = list(pairs(handle.model)), moments == "full", betas, eps
        self.moments: list[tuple[Tensor, Tensor]] = []
        self.step = 0

    def __call__(self, parameters: Parameters) -> None:
        self.step += 1
        for k, pair in enumerate(self.pairs):
            h_a, h_b = adjusted(pair, pair.a.grad, pair.b.grad)
            if self.full:
                g = self._adam(k, pair.scale * (h_b @ pair.a + pair.b @ h_a))
                h_a, h_b = adjusted(pair, pair.scale * pair.b.T @ g, pair.scale * g @ pair.a.T)
            pair.a.grad.copy_(h_a)
            pair.b.grad.copy_(h_b)

    def _adam(self, k: int, g: Tensor) -> Tensor:
        if k == len(self.moments):
            self.moments.append((torch.zeros_like(g), torch.zeros_like(g)))
        for moment, beta, value in zip(self.moments[k], self.betas, (g, g**2)):
            moment.lerp_(value, 1 - beta)
        first, second = (moment / (1 - beta**self.step) for moment, beta in zip(self.moments[k], self.betas))
        return first / (second.sqrt() + self.eps)

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self.moments, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments, self.step = [tuple(each) for each in state["moments"]], state["step"]


def preconditioned(damping: float) -> Callable[[Handle], Link]:
    """g_A <- (B^T B + damping I)^-1 g_A and g_B <- g_B (A A^T + damping I)^-1, arXiv 2402.02347.

    As peft's `create_riemannian_optimizer`, whose optimizer takes no closure.
    """

    def prepare(handle: Handle) -> Link:
        found = list(pairs(handle.model))

        def link(parameters: Parameters) -> None:
            for pair in found:
                eye = damping * torch.eye(len(pair.a), dtype=pair.a.dtype, device=pair.a.device)
                pair.a.grad.copy_(torch.linalg.solve(pair.b.T @ pair.b + eye, pair.a.grad))
                pair.b.grad.copy_(torch.linalg.solve(pair.a @ pair.a.T + eye, pair.b.grad, left=False))

        return link

    return prepare
