"""What of a model is trained: its parameters, and the ways in and out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
"""Values of trained parameters, by name: a policy, a checkpoint, a rewind point."""


@dataclass(eq=False)
class Handle:
    """The trained part of a model, as it was attached; `start` is what its parameters were then.

    model       the whole model; what is not in `parameters` is frozen
    parameters  what is trained, by name
    merged      writes what was learnt into the model's own weights and takes all that was attached away
    detached    takes all that was attached away, and leaves the model's own weights as they were, bit for bit

    At its start a parametrisation is the model itself, so `using(start)` is the reference that a method compares with.

    reached  trained values before the last rewind
    extra    gradients of losses beside the main one, by their names: a loss puts them there, a link of the update takes
             them away in the same step
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    merged: Callable[[], None]
    detached: Callable[[], None]
    start: Weights = field(init=False, repr=False)
    reached: Weights = field(init=False, repr=False, default_factory=dict)
    extra: dict[str, Weights] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self):
        if not self.parameters:
            raise ValueError(f"nothing of this {type(self.model).__name__} is trained; name layers that it has.")
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.start = self.weights()

    @property
    def count(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def weights(self) -> Weights:
        """A copy of the trained values, as they are now."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Take other values over. Raises ValueError for other names or shapes."""
        self._check(weights)
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def rewind(self) -> None:
        """Back to the start; where training had come is kept in `reached`."""
        self.reached = self.weights()
        self.load(self.start)

    @contextmanager
    def using(self, weights: Weights) -> Iterator[None]:
        """While active, the model has other trained values; a policy is these values, `start` the reference.

        A graph made inside must not be used after it. Raises ValueError for other names or shapes.
        """
        self._check(weights)
        own = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = weights[name].to(own[name])
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = own[name]

    def _check(self, weights: Weights) -> None:
        found, wanted = ({n: tuple(w.shape) for n, w in each.items()} for each in (weights, self.parameters))
        if found != wanted:
            wrong = sorted(set(found.items()) ^ set(wanted.items()))
            raise ValueError(f"weights of other names or shapes than those trained here: {wrong[:4]}.")

    def merge(self) -> nn.Module:
        """The model with what was learnt in its own weights, and nothing attached."""
        self.merged()
        return self.model

    def detach(self) -> nn.Module:
        """The model as it was before."""
        self.detached()
        return self.model


def adapted(model: nn.Module, config: Any) -> Handle:
    """A handle on an adapter of peft (`LoraConfig`, `OFTConfig`, `BOFTConfig`, `IA3Config`, ...), beside its layers.

    Raises ValueError, from peft, where no layer of the model has a name that the config targets.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    inject_adapter_in_model(config, model)

    def leave(merge: bool) -> None:
        layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
        for name, layer in layers:
            if merge:
                layer.merge(safe_merge=True)
            model.set_submodule(name, layer.get_base_layer())
        del model.peft_config

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return Handle(model, trained, lambda: leave(True), lambda: leave(False))


def own(model: nn.Module, chosen: Callable[[str, nn.Parameter], bool] = lambda name, parameter: True) -> Handle:
    """A handle on the model's own weights, those that `chosen(name, parameter)` says; a tied one counts once."""
    trained = {name: parameter for name, parameter in model.named_parameters() if chosen(name, parameter)}
    handle = Handle(model, trained, lambda: None, lambda: handle.load(handle.start))
    return handle
