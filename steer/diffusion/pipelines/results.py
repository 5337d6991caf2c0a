"""What a run leaves behind, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.ledger import Ledger
from steer.diffusion.state import Look, State


@dataclass(frozen=True)
class Candidates:
    """All particles of every image at the end, before the last choice.

    latents   (images, n, ...)
    scores    (images, n) float32, -inf for a pruned particle; None if no search has scored them
    pictures  (images, n, 3, h, w) float in [0, 1]; decoded when first asked for, unless the search has done so
    """

    latents: Tensor
    scores: Tensor | None
    decode: Callable[[Tensor], Tensor] = field(repr=False)

    @cached_property
    def pictures(self) -> Tensor:
        with torch.no_grad():
            return self.decode(self.latents.flatten(0, 1)).unflatten(0, self.latents.shape[:2])

    @property
    def winners(self) -> Tensor:
        """(images,) the particle with the highest score; particle 0, the plain pipeline's, without a search."""
        if self.scores is None:
            return torch.zeros(len(self.latents), dtype=torch.long)
        return self.scores.argmax(-1)


@dataclass(frozen=True)
class SteeredOutput:
    """What `Steered` returns.

    images      as many, and of the kind, as the stock pipeline returns; each the winner of its own n particles
    rewards     (images,) the winners' final scores; None without a search
    candidates  all particles' final latents, scores and pictures
    ledger      what it cost
    lineage     (images, looks + 1, n): at look j slot k continued particle lineage[:, j, k]; row 0 is 0 ... n - 1
    trace       one row a look and particle: step, image, prompt, particle, score, ancestor
    """

    images: Any
    rewards: Tensor | None
    candidates: Candidates
    ledger: Ledger
    lineage: Tensor
    trace: list[dict[str, Any]] = field(repr=False)


def final_scores(state: State) -> Tensor | None:
    """(P, n) scores of the particles as they entered the final looks, None if nothing was scored then."""
    scores = None
    for rows, look in _final_looks(state):
        scores = torch.full(look.scores.shape, -torch.inf).scatter(1, rows, look.scores)
    return scores


def final_slots(state: State) -> Tensor:
    """(P, n) for each slot the particle, as it entered the final looks, that it holds after them."""
    slots = torch.arange(state.n).expand(len(state.run.prompts), -1)
    for rows, look in _final_looks(state):
        slots = rows.gather(1, look.index)
    return slots


def lineage(state: State) -> Tensor:
    """(P, looks + 1, n) ancestors: row j is the particle that each slot continued at look j, row 0 is 0 ... n - 1."""
    own = torch.arange(state.n).expand(len(state.run.prompts), -1)
    return torch.stack([own, *(look.index for look in state.trace)], dim=1)


def trace_rows(trace: Sequence[Look], prompts: Sequence[str]) -> list[dict[str, Any]]:
    """One dictionary a look and particle, ready for `pandas.DataFrame`."""
    return [
        {"step": look.i, "image": p, "prompt": prompt, "particle": k, "score": score, "ancestor": ancestor}
        for look in trace
        for p, prompt in enumerate(prompts)
        for k, (score, ancestor) in enumerate(zip(look.scores[p].tolist(), look.index[p].tolist()))
    ]


def _final_looks(state: State) -> Iterator[tuple[Tensor, Look]]:
    """The looks at the finished sample, each with the particles (P, n) that its slots held when it looked."""
    rows = torch.arange(state.n).expand(len(state.run.prompts), -1)
    for look in state.trace:
        if look.i == state.steps:
            yield rows, look
            rows = rows.gather(1, look.index)
