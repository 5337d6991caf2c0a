"""Mixout, arXiv 1909.11299: in each step a random part of the weights is the pretrained one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from steer.training.handle import Handle

Grain = Literal["element", "column"]


class Mixed(nn.Module):
    """W -> u + M (W - u) / (1 - p), with M = 1 of probability 1 - p: its mean is W; u for p = 1."""

    def __init__(self, u: Tensor, p: float, grain: Grain, generator: Generator):
        super().__init__()
        shape = u.shape if grain == "element" else (1, *u.shape[1:])
        mask = torch.rand(shape, generator=generator).to(u.device) >= p
        self.u, self.factor = u, mask.to(u.dtype) / (1 - p) if p < 1 else torch.zeros_like(u)

    def forward(self, weight: Tensor) -> Tensor:
        return self.u + self.factor * (weight - self.u)


@contextmanager
def mixout(handle: Handle, p: float, grain: Grain, generator: Generator) -> Iterator[None]:
    """While active, the trained weights of linear layers are mixed with the handle's start, under one new draw.

    grain  element, or column: all weights of an input together, as the authors' code has it

    The gradient is exact, M / (1 - p); the authors' code leaves the factor out. Biases are not mixed.
    Raises ValueError unless 0 <= p <= 1, and for another grain.
    """
    if not 0 <= p <= 1 or grain not in ("element", "column"):
        raise ValueError(f"mixout of p = {p}, grain {grain!r}: expected p in 0 .. 1, and element or column.")
    start = {id(parameter): handle.start[name] for name, parameter in handle.parameters.items()}
    layers = [m for m in handle.model.modules() if isinstance(m, nn.Linear) and id(m.weight) in start]
    try:
        for layer in layers:
            mixed = Mixed(start[id(layer.weight)].to(layer.weight), p, grain, generator)
            parametrize.register_parametrization(layer, "weight", mixed, unsafe=True)
        yield
    finally:
        for layer in layers:
            if parametrize.is_parametrized(layer):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
                bias = layer.bias
                del layer.bias
                layer.register_parameter("bias", bias)  # behind the weight again, as it was
