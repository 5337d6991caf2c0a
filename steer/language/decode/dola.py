"""Decoding by contrasting layers of one model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steer.language.decode.contrast import plausible
from steer.language.decode.decoder import Decoder
from steer.language.decode.stream import Around, Call, Forward, Stream
from steer.language.passes import rows_of
from steer.language.record import recording
from steer.language.tower import Site, resolved, tower


@dataclass(frozen=True)
class dola(Decoder):
    """What the last layer knows beyond an early one: log q_N(y) - log q_j(y) where q_N is plausible (arXiv 2309.03883).

    q_j reads the next token from the output of block j by the model's own norm and head; of the candidate layers the
    one with the largest Jensen-Shannon divergence from q_N is taken, for each row and token. Plausible are tokens with
    q_N >= alpha max q_N, all others never come. The paper adds repetition_penalty=1.2. Every candidate layer costs a
    run of the head, which the ledger does not count.

    layers  numbers of blocks; "low" or "high": every second of the lower or upper half, never the last block

    Raises ValueError for layers that the model does not have, for the last one, for none, alpha outside [0, 1], and
    for a model whose logits cannot be read from its last block.
    """

    layers: str | tuple[int, ...] = "high"
    alpha: float = 0.1

    def __post_init__(self):
        if isinstance(self.layers, str) and self.layers not in ("low", "high"):
            raise ValueError(f"layers {self.layers!r}: expected 'low', 'high' or numbers of blocks.")
        if not self.layers or not 0 <= self.alpha <= 1:
            raise ValueError(f"{self!r}: expected at least one layer, and 0 <= alpha <= 1.")

    @contextmanager
    def open(self, call: Call) -> Iterator[Stream]:
        places = self._places(call.model)
        with recording(call.model, places) as found:
            yield Layers(Forward.of(call), call.model, found, self.alpha)

    def _places(self, model: Any) -> list[Site]:
        """The candidates, and the last block behind them."""
        last = len(tower(model).blocks) - 1
        if isinstance(self.layers, str):
            layers = range(0, last // 2 + 1, 2) if self.layers == "low" else range((last + 1) // 2, last, 2)
        else:
            layers = self.layers
        places = sorted({resolved(model, layer) for layer in layers})
        if not places or places[-1].layer == last:
            raise ValueError(f"layers {list(layers)} of {last + 1}: expected one or more before the last block.")
        return [*places, Site(last)]


class Layers(Around):
    def __init__(self, inner: Stream, model: Any, found: dict[Site, list[Tensor]], alpha: float):
        self.model, self.found, self.alpha, self.norm = model, found, alpha, final_norm(model)
        super().__init__(inner)

    @torch.no_grad()
    def score(self) -> Tensor:
        from steer.language.inputs import head

        states = torch.stack([self.found[place].pop()[:, -1] for place in self.found], 1)
        with rows_of(self.origin):
            every = head(self.model, self.norm(states)).float()
        *_, own = every.unbind(1)
        if not torch.allclose(own, self.inner.logits, atol=0.01 * float(self.inner.logits.abs().max())):
            raise ValueError(
                f"{type(self.model).__name__}: its head on its last block does not give its logits; dola cannot read "
                "its earlier ones."
            )
        final = self.inner.logits.log_softmax(-1)
        early = every[:, :-1].log_softmax(-1)
        chosen = divergence(final[:, None], early).argmax(1)
        early = early[torch.arange(len(early), device=early.device), chosen]
        return torch.where(plausible(final, self.alpha), final - early, -torch.inf)


def divergence(logp: Tensor, logq: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions given by their logarithms, over the last axis."""
    middle = torch.logaddexp(logp, logq) - torch.log(torch.tensor(2.0))
    return ((logp.exp() * (logp - middle)).sum(-1) + (logq.exp() * (logq - middle)).sum(-1)) / 2


def final_norm(model: Any) -> nn.Module:
    """What stands behind the last block: of the modules beside the blocks the last one that has vectors alone.

    Raises ValueError where there is none.
    """
    decoder, blocks, _ = tower(model)
    beside = next(m for m in decoder.modules() if any(child is blocks for child in m.children()))
    norms = [m for m in beside.children() if [*m.parameters()] and all(p.ndim == 1 for p in m.parameters())]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no norm behind its blocks: dola cannot read its layers.")
    return norms[-1]
