"""Apply a steering vector to a model, for the length of a `with`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer.language.edits import Add, Edit, edit, kept, norm
from steer.language.gates import Gate, Gating
from steer.language.hooks import hooked
from steer.language.passes import Tracker, repeated, tracked
from steer.language.scopes import Mask, Scope, scope
from steer.language.tower import Site
from steer.language.vectors import SteeringVector, fitted_to

SINK = 10.0
"""A state whose norm is above this many times the median at its site is an attention sink."""


@dataclass(eq=False)
class Push:
    """One edit at one site, as it runs in a forward pass."""

    tracker: Tracker
    scope: Scope
    edit: Edit
    direction: Tensor
    strength: Tensor | float
    keep_norm: bool
    limit: Tensor | None
    gating: Gating | None

    def __call__(self, hidden: Tensor) -> Tensor | None:
        mask = self.scope(self.tracker.now, hidden)
        if mask is False or (isinstance(self.strength, float) and self.strength == 0):
            return None
        self.direction = self.direction.to(hidden.device, hidden.dtype)
        strength, direction = self.strength, self.direction
        if isinstance(strength, Tensor):
            strength = repeated(strength, len(hidden)).to(hidden.device, hidden.dtype)
            mask = mask & (strength != 0)[..., 0]
        if direction.ndim == 3:
            direction = repeated(direction, len(hidden))
        if self.gating is not None:
            mask = mask & self.gating.open(len(hidden))
        if hidden.is_cuda and isinstance(self.edit, Add) and not torch.is_grad_enabled():
            return self.fused(hidden, direction, strength, mask)
        changed = self.edit(hidden, direction, strength)
        if self.keep_norm or self.limit is not None:
            size = norm(hidden)
            if self.keep_norm:
                changed = kept(changed, size)
            if self.limit is not None:
                mask = mask & (size <= self.limit.to(size.device))[..., 0]
        return changed if mask is True else torch.where(mask[..., None], changed, hidden)

    def fused(self, hidden: Tensor, direction: Tensor, strength: Tensor | float, mask: Mask) -> Tensor:
        """Adding, keeping the norm and sparing sinks in one kernel, without a gradient."""
        from steer_kernels.steer_add import steer_add  # imports Triton, which takes its time

        dial = strength[..., 0] if isinstance(strength, Tensor) else torch.full((1,), strength, device=hidden.device)
        return steer_add(
            hidden.clone(),  # others may hold what the block returned
            direction[None] if direction.ndim == 1 else direction,
            dial,
            mask=None if mask is True else mask,
            relative=self.edit.relative,
            keep_norm=self.keep_norm,
            limit=torch.inf if self.limit is None else float(self.limit),
        )


@contextmanager
def steering(
    model: Any,
    vector: SteeringVector | Sequence[SteeringVector],
    strength: float | Sequence[float] | Tensor = 0.1,
    *,
    edit: str | Edit = "add",
    where: str | Scope | Tensor = "all",
    keep_norm: bool = True,
    relative: bool = True,
    gate: Gate | None = None,
    prompt_length: int | None = None,
) -> Iterator[None]:
    """While it is open, every pass of `model` is steered: forward, `generate` with any cache, beams, assistants.

    At each site of the vector h' = edit(h, v, strength), for "add" h + strength |h| v / |v|, and with `keep_norm`
    h' |h| / |h'|, per token. Contexts nest, and act in the order in which they were opened at a site; they may be
    closed in any order. Afterwards the model is bit-equal to before, also after an exception.

    vector         one for all rows, or a sequence with one for each row of the batch, all at the same sites
    strength       the dial, 0 the identity, bit for bit; a number, or one for each row. `rows` here are prompts: beams
                   and returned sequences of a prompt get its own
    edit           "add", "project", "ablate", "clamp", "rotate", or an edit of `steer.language.edits`
    where          "all", "prompt", "generated", "last", "image", Positions, or a mask: see `scopes.scope`
    relative       of "add": the strength is a share of each state's norm. Attention sinks, told by the norms that the
                   vector carries, are exempt: pushing the first token's huge state ruins the text
    gate           steer only the rows whose prompt passes it
    prompt_length  columns of the prompt, where the model is called and not its `generate`

    Raises ValueError for a vector of another model, rows that disagree in their sites, an unknown edit or scope, a
    strength that is not finite, and a relative strength with a vector that carries no norms.
    """
    vectors = [fitted_to(v, model) for v in ([vector] if isinstance(vector, SteeringVector) else vector)]
    dial, how = _strength(strength), edit_of(edit, relative)
    place = scope(where, model, prompt_length)
    sites = _sites(vectors)
    limits = _limits(vectors, sites, isinstance(how, Add) and how.relative)
    with tracked(model) as tracker:
        gating = None if gate is None else Gating(gate, tracker, min(s.layer for s in sites), prompt_length)
        pushes = [
            (
                s,
                Push(tracker, place, how, _direction(vectors, s), dial, keep_norm, limits.get(s), gating),
            )
            for s in sites
        ]
        with hooked(model, [*([] if gating is None else [(gating.site, gating)]), *pushes]):
            yield


edit_of = edit


def _sites(vectors: Sequence[SteeringVector]) -> tuple[Site, ...]:
    if not vectors:
        raise ValueError("no steering vectors: expected one, or one for each row.")
    for other in vectors[1:]:
        if set(other.sites) != set(vectors[0].sites):
            raise ValueError(f"vectors of a batch at sites {vectors[0].sites} and {other.sites}: expected the same.")
    return vectors[0].sites


def _direction(vectors: Sequence[SteeringVector], place: Site) -> Tensor:
    every = [v.directions[place] for v in vectors]
    return every[0] if len(every) == 1 else torch.stack(every)[:, None]


def _limits(vectors: Sequence[SteeringVector], sites: Sequence[Site], relative: bool) -> dict[Site, Tensor]:
    """Site -> the norm above which a state is a sink; none where strengths are absolute."""
    if not relative:
        return {}
    if missing := [str(s) for s in sites for v in vectors if s not in v.norms]:
        raise ValueError(
            f"sites {missing}: no norms, which a relative strength needs to spare attention sinks. Take a fitted "
            "vector, measure them with `steer.language.norms(model, tokens, sites)`, or say relative=False."
        )
    return {s: torch.tensor(SINK * max(v.norms[s] for v in vectors)) for s in sites}


def _strength(value: float | Sequence[float] | Tensor) -> Tensor | float:
    """A float, or (rows, 1, 1)."""
    dial = torch.as_tensor(value, dtype=torch.float32)
    if dial.ndim > 1 or not dial.isfinite().all() or not dial.numel():
        raise ValueError(f"strength {value}: expected a finite number, or one for each row.")
    return float(dial) if dial.ndim == 0 else dial[:, None, None]
