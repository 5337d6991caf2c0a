"""P * n candidates on a stream of rows: who has ended has none, and candidates that are still equal share one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steer.language.decode.stream import Stream

Draw = Callable[[Tensor, Tensor], Tensor]
"""(scores (R, V), candidates (R,)) -> tokens (R,)."""


class Run:
    """Candidates of P prompts, contiguous for each prompt; a flat number counts all of them.

    ids     (P n, columns) the prompt and what follows it; the pad token after the end
    length  (P n,) tokens of each until its end, the end included
    done    (P n,) whether it has ended, or was switched off
    rows    (R,) the candidate that each row of the stream is
    last    (R,) the token of each row that was drawn last, and that the model has not seen
    """

    def __init__(self, stream: Stream, on: Tensor, draw: Draw, processors: Callable, stop: Callable, pad: int):
        self.stream, self.draw, self.processors, self.stop, self.pad = stream, draw, processors, stop, pad
        self.shape, self.columns = on.shape, stream.ids.shape[1]
        self.ids = stream.ids.repeat_interleave(on.shape[1], 0)
        self.done = ~on.flatten().to(self.ids.device)
        self.length = torch.zeros_like(self.ids[:, 0])
        self.rows = (~self.done).nonzero()[:, 0]
        self.last = torch.empty(0)
        stream.gather(self.rows // on.shape[1])

    @property
    def tokens(self) -> Tensor:
        """(P n, t) what follows the prompt."""
        return self.ids[:, self.columns :]

    @property
    def live(self) -> Tensor:
        return (~self.done).nonzero()[:, 0]

    def block(self, count: int | None) -> None:
        """Every live candidate goes on by `count` tokens or to its end (None: all to their ends)."""
        drawn = 0
        while len(self.live) and drawn != count:
            if drawn:
                self._continue(self.live, self.live)
            self._draw()
            drawn += 1

    def follow(self, index: Tensor, on: Tensor) -> None:
        """Slot (p, k) goes on as candidate index[p, k] of its prompt, and those not `on` are switched off."""
        prompts, n = self.shape
        index, on = index.to(self.done.device), on.to(self.done.device)
        ancestor = (index + n * torch.arange(prompts, device=index.device)[:, None]).flatten()
        self.ids, self.length = self.ids[ancestor], self.length[ancestor]
        self.done = self.done[ancestor] | ~on.flatten()
        if len(self.live):
            self._continue(self.live, ancestor[self.live])

    def _continue(self, slots: Tensor, ancestors: Tensor) -> None:
        """The model sees the last token of each distinct ancestor once; then the rows are those of the slots."""
        place = torch.full_like(self.length, -1)
        place[self.rows] = torch.arange(len(self.rows), device=place.device)
        distinct, each = place[ancestors].unique(return_inverse=True)
        self.stream.gather(distinct)
        self.stream.push(self.last[distinct])
        self.stream.gather(each)
        self.rows = slots

    def _draw(self) -> None:
        logits = self.stream.logits.new_zeros(len(self.ids), self.stream.logits.shape[1])
        logits[self.rows] = self.stream.logits
        scores = self._each(self.processors, logits)[self.rows]
        self.last = self.draw(scores, self.rows)
        column = torch.full_like(self.length, self.pad)
        column[self.rows] = self.last
        self.ids = torch.cat([self.ids, column[:, None]], 1)
        self.length[self.rows] += 1
        self.done[self.rows] = self._each(self.stop)[self.rows]

    def _each(self, act: Callable, values: Tensor | None = None) -> Tensor:
        """act(ids, values) of one candidate of every prompt at a time: `generate` lets it know which row is which."""
        ids = self.ids.unflatten(0, self.shape)
        values = None if values is None else values.unflatten(0, self.shape)
        each = [act(ids[:, k], None if values is None else values[:, k]) for k in range(self.shape[1])]
        return torch.stack(each, 1).flatten(0, 1)
