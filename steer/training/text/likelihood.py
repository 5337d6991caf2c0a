"""Learning the answers of examples: token cross-entropy, plain or rectified, on all examples or on some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor
from torch.nn import functional as F

from steer.language.data import Encoded
from steer.training.handle import Handle
from steer.training.loop import Logged
from steer.training.objective import Objective
from steer.training.text.task import TextTask

Weight = Callable[[Tensor], Tensor]
"""-log p of tokens (tokens,), without a graph -> what each counts."""


def rectified(nll: Tensor) -> Tensor:
    """sg(p): the gradient of the loss is then that of -p, and unlikely tokens do not dominate (DFT)."""
    return (-nll).exp()


@dataclass(eq=False)
class Likelihood(Objective):
    """- sum w_t log p(y_t | x, y_<t) / tokens over the answers of a batch.

    A batch's own tokens are counted: with `accumulate` each part has its own mean.

    weight  of a token; None: 1
    pool    (handle, task) -> the places of the examples that are learnt; None: all
    """

    handle: Handle
    task: TextTask
    batch: int = 8
    weight: Weight | None = None
    pool: Callable[[Handle, TextTask], Tensor] | None = None

    def __post_init__(self):
        self.among = None if self.pool is None else self.pool(self.handle, self.task)

    def draw(self, generator: Generator) -> Encoded:
        return self.task.batch(generator, self.batch, self.among)

    def loss(self, generator: Generator) -> tuple[Tensor, Logged]:
        logits, ids, _ = self.task.answers(self.draw(generator))
        nll = F.cross_entropy(logits, ids, reduction="none")
        value = nll if self.weight is None else self.weight(nll.detach()) * nll
        return value.mean(), {"nll": nll.mean().item()}
