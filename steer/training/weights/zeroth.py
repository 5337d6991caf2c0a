"""Sparse MeZO, arXiv 2402.15751: two forward passes a step, no gradient, and only small weights move."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from steer.training.handle import Handle
from steer.training.method import Masks, Optim
from steer.training.weights.chain import Parameters
from steer.training.weights.scores import below


class Mezo(torch.optim.Optimizer):
    """w <- w - lr d z with d = (L(w + eps z) - L(w - eps z)) / (2 eps), z = m N(0, I) drawn anew from each step's seed.

    masks  m of parameters by name, or a function of the parameters: asked once a step, of the weights as they are, so
           that both passes and the update have one mask. What has none moves whole.

    The closure must give the loss of one batch each time, as `fit`'s does; it is called without gradients. A copy of
    the weights is kept through the step, so what is masked off stays bit for bit.
    """

    def __init__(
        self,
        parameters: Parameters,
        masks: Masks | Callable[[Parameters], Masks] | None = None,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
    ):
        if not eps > 0:
            raise ValueError(f"eps = {eps}: expected a distance above 0.")
        super().__init__(list(parameters.values()), {"lr": lr, "eps": eps, "seed": seed, "step": 0})
        self.parameters, self.masks = parameters, masks if masks is not None else {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:
        """Raises ValueError without a closure."""
        if closure is None:
            raise ValueError("a zeroth-order step needs the loss twice: call step(closure).")
        group = self.param_groups[0]
        masks = self.masks(self.parameters) if callable(self.masks) else self.masks
        before = {name: parameter.clone() for name, parameter in self.parameters.items()}
        losses = []
        for sign in (1, -1):
            self._move(before, masks, sign * group["eps"])
            losses.append(torch.as_tensor(closure()))
        slope = float(losses[0] - losses[1]) / (2 * group["eps"])
        self._move(before, masks, -group["lr"] * slope)
        group["step"] += 1
        return torch.stack(losses).mean()

    def _move(self, before: dict[str, Tensor], masks: Masks, by: float) -> None:
        """Parameters to `before` + by z, where there is no mask or it is on."""
        group = self.param_groups[0]
        generator = Generator().manual_seed((group["seed"] << 32) + group["step"])
        for name, parameter in self.parameters.items():
            z = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype).to(parameter.device)
            moved = before[name] + by * z
            parameter.copy_(torch.where(masks[name], moved, before[name]) if name in masks else moved)


def forward_only(lr: float, eps: float, seed: int, static: bool) -> Optim:
    """Sparse MeZO on the entries selected; static: on these throughout, else on whatever is as small in each step."""

    def optim(handle: Handle, masks: Masks) -> Mezo:
        return Mezo(handle.parameters, masks if static else below(handle, masks), lr, eps, seed)

    return optim
