"""What the methods of this folder ask of a task, the layers they train, and a task of labelled examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

Batch = Any
"""What `batch` of a task draws, and its other functions take."""


class Learnable(Protocol):
    """Examples with a loss. `model` may be given another value than the task's own: a function that runs it changed.

    A task may know more, and some methods ask for it:

    logits(model, batch)    (n, classes): of all predictions that the loss counts (ProGrad)
    choices(model, batch)   log p (b, choices, tokens), which tokens count (the same shape, bool), and the number of the
                            right choice (b,) (T-Few)
    features(model, batch)  (2 b, d) of two views of each example, and their labels (2 b,) (GPS with its own loss)
    ones(model)             outputs of a model that is fed with ones (SynFlow)
    """

    model: nn.Module

    def batch(self, generator: Generator, size: int) -> Batch:
        """Examples drawn from the generator, and from nothing else."""
        ...

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """The mean over the batch, a scalar."""
        ...


def asked(task: Learnable, name: str) -> Callable[[Any, Batch], Any]:
    """A function that not every task has. Raises ValueError for one that has not."""
    if not hasattr(task, name):
        raise ValueError(f"the method asks for {name}(model, batch), and {type(task).__name__} has no such function.")
    return getattr(task, name)


def targeted(model: nn.Module, targets: Sequence[str] = ()) -> dict[str, nn.Linear]:
    """Linear layers by name: those whose name is, or ends in a dot and, one of the targets, as peft has it.

    No targets: all but the output head of a language model, which is often tied to its embedding.
    Raises ValueError where none is left.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    if targets:
        found = {n: layer for n, layer in linear.items() if any(f".{n}".endswith(f".{target}") for target in targets)}
    else:
        found = {name: layer for name, layer in linear.items() if layer is not head}
    if not found:
        raise ValueError(
            f"targets {list(targets)}: expected ends of names of linear layers, such as {list(linear)[:4]}."
        )
    return found


@dataclass(eq=False)
class Examples:
    """Labelled examples: inputs (n, ...) and labels (n,), cross-entropy, and one choice of one token for each class.

    A batch is two views of each example with its label; features are what goes into the last layer of a Sequential.
    """

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    view: Callable[[Tensor, Generator], Tensor] = lambda inputs, generator: inputs

    def batch(self, generator: Generator, size: int) -> Batch:
        which = torch.randint(len(self.inputs), (size,), generator=generator)
        views = [self.view(self.inputs[which], generator) for _ in range(2)]
        return (*views, self.labels[which])

    def loss(self, model: Any, batch: Batch) -> Tensor:
        return cross_entropy(self.logits(model, batch), batch[-1])

    def logits(self, model: Any, batch: Batch) -> Tensor:
        return model(batch[0])

    def choices(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        logp = self.logits(model, batch).log_softmax(-1)[..., None]
        return logp, torch.ones_like(logp, dtype=torch.bool), batch[-1]

    def ones(self, model: Any) -> Tensor:
        return model(torch.ones_like(self.inputs[:1], dtype=torch.float64))

    def features(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        return model[:-1](torch.cat(batch[:2])), batch[-1].repeat(2)
