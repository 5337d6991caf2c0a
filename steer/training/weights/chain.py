"""A chain of updates: links that change gradients, a torch optimizer, and a mask that has the last word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from steer.training.handle import Handle
from steer.training.method import Masks, Optim
from steer.training.weights.select import select

Parameters = Mapping[str, nn.Parameter]
Link = Callable[[Parameters], None]
"""Changes gradients in place; may have state_dict and load_state_dict."""


class Chain(torch.optim.Optimizer):
    """gradients -> links -> optimizer -> mask.

    The mask acts on the update: the optimizer steps, then the values from before are written back where the mask is
    off. So what is frozen stays bit for bit, also under weight decay and momentum, and what is not moves as if there
    were no mask. `masks` may be a function of the parameters, asked in each step after the links.

    It is itself an optimizer, with the groups and the state of the one inside, for any trainer or schedule.
    """

    def __init__(
        self,
        optimiser: torch.optim.Optimizer,
        parameters: Parameters,
        links: Sequence[Link] = (),
        masks: Masks | Callable[[Parameters], Masks] | None = None,
    ):
        self.optimiser, self.parameters, self.links = optimiser, parameters, links
        self.masks = masks if masks is not None else {}

    # as in accelerate's: no second copy of groups and state to keep in step
    param_groups = property(lambda self: self.optimiser.param_groups)
    state = property(lambda self: self.optimiser.state)
    defaults = property(lambda self: self.optimiser.defaults)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        with torch.no_grad():
            for link in self.links:
                link(self.parameters)
            masks = self.masks(self.parameters) if callable(self.masks) else self.masks
            before = {name: self.parameters[name].clone() for name in masks}
            self.optimiser.step()
            for name, mask in masks.items():
                self.parameters[name].copy_(torch.where(mask, self.parameters[name], before[name]))
        return value

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimiser.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        remembered = [link.state_dict() if hasattr(link, "state_dict") else {} for link in self.links]
        return {**self.optimiser.state_dict(), "links": remembered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = dict(state_dict)
        for link, remembered in zip(self.links, own.pop("links")):
            if hasattr(link, "load_state_dict"):
                link.load_state_dict(remembered)
        self.optimiser.load_state_dict(own)


def update(
    rule: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    *links: Callable[[Handle], Link],
    masks: Callable[[Parameters], Masks] | None = None,
) -> Optim:
    """A chain for whatever handle comes: `update(partial(AdamW, lr=1e-3), clip_each(0.05))`."""

    def optim(handle: Handle, chosen: Masks) -> Chain:
        made = [link(handle) for link in links]
        return Chain(rule(handle.parameters.values()), handle.parameters, made, masks or chosen)

    return optim


def clip_each(limit: float) -> Callable[[Handle], Link]:
    """g <- g min(1, limit / |g|), each tensor by its own norm: CGNC, arXiv 2210.10325."""

    def link(parameters: Parameters) -> None:
        for parameter in parameters.values():
            nn.utils.clip_grad_norm_([parameter], limit)

    return lambda handle: link


def top_gradient(parameters: Parameters, fraction: float) -> Masks:
    """The largest |g| of each tensor: GMT, arXiv 2406.15330."""
    given = {name: p.grad.abs() for name, p in parameters.items() if p.grad is not None}
    return select(given, float(fraction), "tensor")


def masked(masks: Callable[[Parameters], Masks]) -> Callable[[Handle], Link]:
    """g <- m g. An optimizer with momentum or decay still moves what is masked; see `Chain` for one that does not."""

    def link(parameters: Parameters) -> None:
        for name, mask in masks(parameters).items():
            parameters[name].grad.mul_(mask)

    return lambda handle: link


def aligned(strength: float, with_: str = "keep") -> Callable[[Handle], Link]:
    """Where g opposes the gradient k of a loss that keeps what is known, g <- g - strength <g, k> k / |k|^2.

    Of each tensor on its own: ProGrad, arXiv 2205.14865. k is in `handle.extra` under its name.
    """

    def link(handle: Handle, parameters: Parameters) -> None:
        for name, k in handle.extra.pop(with_).items():
            g = parameters[name].grad
            if (along := torch.sum(g * k)) < 0:
                g.sub_(strength * along / torch.sum(k * k) * k)

    return lambda handle: partial(link, handle)
