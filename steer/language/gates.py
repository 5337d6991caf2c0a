"""Steer only the rows whose prompt shows a condition (CAST, arXiv 2409.05907)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steer.language.passes import Tracker, repeated
from steer.language.scopes import Columns
from steer.language.tower import Site, resolved
from steer.language.vectors import SteeringVector, fitted_to


@dataclass(frozen=True)
class Gate:
    """Open for a row where cos(x, tanh(P x)) > threshold, x the mean state of its prompt, P = c c^T / |c|^2.

    condition  c, a vector with one site, at or before the steered ones
    above      False: open where it is below
    """

    condition: SteeringVector
    threshold: float
    above: bool = True

    def __post_init__(self):
        if len(self.condition.sites) != 1:
            raise ValueError(f"a gate at {len(self.condition.sites)} sites: expected a condition with one site.")

    def similarity(self, mean: Tensor) -> Tensor:
        """(rows,) of mean states (rows, width)."""
        c = self.condition.directions[self.condition.sites[0]].to(mean.device, mean.dtype)
        seen = torch.tanh((mean @ c)[:, None] * c / (c @ c))
        return torch.nn.functional.cosine_similarity(mean, seen, dim=-1)


class Gating:
    """A gate on a running model: what the prompt decided stands while its answer is generated.

    A prompt that comes in several passes is judged by what has come so far.
    """

    def __init__(self, gate: Gate, tracker: Tracker, first: int, prompt_length: int | None):
        condition = fitted_to(gate.condition, tracker.model)
        self.site: Site = resolved(tracker.model, condition.sites[0])
        if self.site.layer > first:
            raise ValueError(f"a gate at layer {self.site.layer} cannot steer layer {first}, which comes before it.")
        self.gate, self.tracker = Gate(condition, gate.threshold, gate.above), tracker
        self.prompt = Columns(None, 0, prompt_length)
        self.total: Tensor | None = None
        self.count: Tensor | None = None

    def __call__(self, hidden: Tensor) -> None:
        now = self.tracker.now
        mask = self.prompt(now, hidden)
        if mask is False:
            return
        place = torch.arange(now.start, now.start + now.count, device=hidden.device)[None]
        real = place >= (torch.zeros_like(place[:, :1]) if now.pads is None else now.pads.to(hidden.device))
        chosen = (real & mask).expand(len(hidden), -1)[..., None]
        total, count = (hidden.float() * chosen).sum(1), chosen.sum(1)
        again = now.start > 0 and self.total is not None
        self.total, self.count = (self.total + total, self.count + count) if again else (total, count)

    def open(self, rows: int) -> Tensor:
        """(rows, 1) bool."""
        found = self.gate.similarity(self.total / self.count.clamp_min(1))
        passed = found > self.gate.threshold if self.gate.above else found < self.gate.threshold
        return repeated(passed, rows)[:, None]
