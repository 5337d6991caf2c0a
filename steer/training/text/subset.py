"""Which examples are learnt changes as training goes on: dynamic data subset selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from steer.language.data import Encoded
from steer.training.text.likelihood import Likelihood
from steer.training.text.scores import Score, el2n, hardest, scored


@dataclass(eq=False)
class DynamicSubset(Likelihood):
    """Epochs over all examples, then cycles of epochs over those that are hardest by then (arXiv 2306.03208).

    All are scored anew before each cycle, s <- a s_now + (1 - a) s, so that what was dropped can come back.

    keep    share of the examples that a cycle has
    top     share of the very hardest, most of them wrong labels, that no cycle has
    warm    epochs over all; 0: the first cycle has a random share
    cycle   epochs between two scorings
    smooth  a, the share of the newest scores in their moving average
    """

    keep: float = 0.5
    top: float = 0.0
    warm: int = 2
    cycle: int = 2
    smooth: float = 0.8
    score: Score = el2n

    def __post_init__(self):
        if self.warm < 0 or self.cycle < 1 or not 0 < self.smooth <= 1:
            raise ValueError(
                f"warm {self.warm}, cycle {self.cycle}, smooth {self.smooth}: expected warm >= 0, cycle >= 1 and "
                "smooth in (0, 1]."
            )
        super().__post_init__()
        self.epoch, self.scores, self.left = 0, torch.empty(0), torch.empty(0, dtype=torch.long)
        self.among = hardest(torch.zeros(len(self.task.rows)), 1.0)

    def draw(self, generator: Generator) -> Encoded:
        """The next examples of the epoch, each of which comes once."""
        if not len(self.left):
            if self.epoch >= self.warm and (self.epoch - self.warm) % self.cycle == 0:
                self.among = self._chosen(generator)
            self.left = self.among[torch.randperm(len(self.among), generator=generator)]
            self.epoch += 1
        index, self.left = self.left[: self.batch], self.left[self.batch :]
        return self.task.rows.take(index)

    def _chosen(self, generator: Generator) -> Tensor:
        if self.epoch == 0:
            return hardest(torch.rand(len(self.task.rows), generator=generator), self.keep)
        now = scored(self.task, self.score)
        self.scores = self.smooth * now + (1 - self.smooth) * self.scores if len(self.scores) else now
        return hardest(self.scores, self.keep, self.top)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "scores": self.scores, "left": self.left, "among": self.among}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.scores, self.left, self.among = (state[k] for k in ("epoch", "scores", "left", "among"))
