"""One pass over data, and nothing of the model changed: gradients, their squares, curvature, covariance of inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from steer.training.handle import Weights
from steer.training.weights.task import Batch, Learnable

Statistics = dict[str, Weights]
Criterion = Callable[[Any, Batch], Tensor]
ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")


def batches(task: Learnable, count: int, size: int = 1, seed: int = 0) -> Iterator[Batch]:
    """The calibration data: the same in every run with this seed."""
    generator = Generator().manual_seed(seed)
    return (task.batch(generator, size) for _ in range(count))


def collect(
    model: nn.Module,
    loss: Criterion,
    data: Iterable[Batch],
    parameters: Mapping[str, nn.Parameter],
    what: Collection[str] = ("gradient",),
) -> Statistics:
    """Means over batches, in float32 at least: gradient g, square g^2, and curvature H g with the g and H of the batch.

    The square is that of a batch's mean gradient: give batches of one for squares of single examples. The model is
    read in eval mode. Raises ValueError for no data.
    """
    names, sums, count = list(parameters), {}, 0
    twice = sdpa_kernel(SDPBackend.MATH) if "curvature" in what else nullcontext()  # its backward pass has one itself
    with evaluating(model, parameters), twice:
        for count, batch in enumerate(data, 1):
            wanted = list(parameters.values())
            g = torch.autograd.grad(
                loss(model, batch), wanted, create_graph="curvature" in what, materialize_grads=True
            )
            found = {"gradient": g, "square": [each**2 for each in g]}
            if "curvature" in what:
                along = torch.stack([(each * each.detach()).sum() for each in g]).sum()
                found["curvature"] = torch.autograd.grad(along, wanted, materialize_grads=True)
            for kind in what:
                for name, value in zip(names, found[kind]):
                    value = value.detach().to(torch.promote_types(value.dtype, torch.float32))
                    sums[kind, name] = sums[kind, name] + value if (kind, name) in sums else value.clone()
    if not count:
        raise ValueError("no data to collect from: expected at least one batch.")
    return {kind: {name: sums[kind, name] / count for name in names} for kind in what}


def flow(model: nn.Module, run: Callable[[nn.Module], Tensor], parameters: Mapping[str, nn.Parameter]) -> Weights:
    """d sum(run(model)) / d|w| where all weights are |w| and activations are the identity, in float64.

    run  feeds a model with ones: SynFlow, arXiv 2006.05467, no data. A gated MLP becomes a product of two branches.
    """
    twin = deepcopy(model).double().eval().requires_grad_(True)
    for name, module in list(twin.named_modules()):
        if type(module).__module__ in ACTIVATIONS and not isinstance(module, nn.MultiheadAttention):
            twin.set_submodule(name, nn.Identity())
    for parameter in twin.parameters():
        parameter.data.abs_()
    there = dict(twin.named_parameters())
    gradients = torch.autograd.grad(run(twin).sum(), [there[name] for name in parameters], materialize_grads=True)
    return {name: g for name, g in zip(parameters, gradients)}


@torch.no_grad()
def covariance(model: nn.Module, loss: Criterion, data: Iterable[Batch], layers: Mapping[str, nn.Module]) -> Weights:
    """Mean over batches of X^T X / max(X)^2 of each layer's inputs X (rows, in), as CorDA's code and peft have it.

    peft's own hook (0.21) reads inputs (1, rows, in) alone.
    """
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def read(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().flatten(0, -2).float()
            x = x / x.max().abs()
            sums[name] = sums.get(name, 0) + x.T @ x

        return read

    handles, count = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()], 0
    try:
        with evaluating(model, {}):
            for count, batch in enumerate(data, 1):
                loss(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: value / count for name, value in sums.items()}


@contextmanager
def evaluating(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """The model in eval mode, with gradients for these parameters alone; as it was on exit."""
    modes = {module: module.training for module in model.modules()}
    needs = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval().requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, need in needs.items():
            parameter.requires_grad_(need)
