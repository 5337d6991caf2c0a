"""Guidance: which branches of a denoiser to evaluate, and how they become one prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.controllers.guidance.branches import ASKED, FREE, Cond, evaluate
from steer.diffusion.denoise import KINDS, from_x0, to_x0
from steer.diffusion.state import Level, State


class Rule:
    """How branches become one prediction; frozen, for its repr is configuration.

    needs(level)               the branches to evaluate, such as (FREE, ASKED)
    __call__(level, *branches) those branches (b, ...), in that order -> the guided prediction (b, ...)
    begin()                    the rule as one run uses it, memory of its own included
    check(state)               refuses a run that it does not fit
    """

    remembers: bool = False
    """True if what it does at a step depends on the particles' earlier steps (momentum)."""

    def needs(self, level: Level) -> tuple[int, ...]:
        return FREE, ASKED

    def __call__(self, level: Level, *branches: Tensor) -> Tensor:
        raise NotImplementedError

    def begin(self) -> Rule:
        return self

    def check(self, state: State) -> None:
        """Raises ValueError at a look of a run that the rule does not fit."""


@dataclass(frozen=True)
class Interval:
    """Where guidance acts: start <= progress < stop, and low < sigma / alpha <= high for the noise-to-signal ratio."""

    progress: tuple[float, float] = (0.0, 1.0)
    noise: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self):
        (start, stop), (low, high) = self.progress, self.noise
        if not (0 <= start < stop <= 1 and 0 <= low < high):
            raise ValueError(f"{self!r}: expected progress 0 <= start < stop <= 1 and noise 0 <= low < high.")

    def __call__(self, level: Level) -> bool:
        noise = level.sigma / level.alpha if level.alpha else math.inf
        return self.progress[0] <= level.progress < self.progress[1] and self.noise[0] < noise <= self.noise[1]


@dataclass(frozen=True)
class Limited(Controller):
    """The run's own guidance inside an interval; outside of it the conditional branch, a single row a particle."""

    when: Interval

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def limited(x: Tensor, level: Level, cond: Cond) -> Tensor:
            return denoiser(x, level, cond) if self.when(level) else evaluate(denoiser, x, level, cond, (ASKED,))[0]

        return limited


@dataclass(frozen=True)
class Guide(Controller):
    """Guidance in place of the pipeline's own: evaluates the branches that its rule needs, and combines them.

    rule      see `Rule`; `steer.guidance` has one function for each method
    space     what the rule combines, one of `denoise.KINDS`: "sample" is x0 itself. For a rule that is linear in the
              branches with weights that sum to one, all spaces are the same
    when      outside of it the conditional branch is evaluated alone, a single row a particle
    concepts  conditionings of further branches, as `denoiser_of(pipe, text).cond` holds them: the last block of the
              first prompt counts, for all particles
    weak      a controller whose `wrap` makes a denoiser worse, for the WEAK branch

    Branches of the network are evaluated in one call, one row each, in the order in which the pipeline would do it.
    Works inside any run with conditioning {argument: (b, 2, ...)}: a pipeline called with guidance_scale > 1 (how much
    above does not matter), or `sample` with the `cond` of `denoiser_of`. Put it before other controllers that
    wrap: it asks what lies inside of it for single branches.

    Raises ValueError for a rule that is none and an unknown space; in a run for a missing unconditional branch, for
    concepts of another network, and, if the rule remembers, for a search between steps and for a second evaluation in
    one step.
    """

    rule: Rule
    space: str = "sample"
    when: Interval = Interval()
    concepts: tuple[Cond, ...] = field(default=(), repr=False)
    weak: Controller | None = None

    def __post_init__(self):
        if not isinstance(self.rule, Rule):
            raise ValueError(
                f"Guide({self.rule!r}): expected a Rule. steer.guidance has a function for each method, such as "
                "cfg and apg, which returns a Guide; from_diffusers(guider) makes one of a guider of diffusers."
            )
        if self.space not in KINDS:
            raise ValueError(f"Guide: space {self.space!r}; expected one of {KINDS}.")

    @property
    def couples_rows(self) -> bool:  # type: ignore[override]
        return self.rule.remembers  # its memory has one row for every slot

    @property
    def reads(self) -> bool:
        return self.weak is not None and self.weak.reads

    def start(self, state: State) -> State:
        state = state if self.weak is None else self.weak.start(state)
        return self._marked(state) if self.rule.remembers else state

    def look(self, state: State) -> State:
        state = state if self.weak is None else self.weak.look(state)
        if state.finished:
            return state
        self.rule.check(state)
        if not self.rule.remembers:
            return state
        if not torch.equal(state.memory[self._mark], torch.arange(len(state.x))):
            raise ValueError(
                f"{self.rule!r} remembers earlier steps of each particle, but a search has put others in their places. "
                "Use it with best_of_n, which chooses at the end, or without momentum."
            )
        return self._marked(state)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        rule = self.rule.begin()
        weak = None if self.weak is None else self.weak.wrap(denoiser)
        latest = -math.inf

        def guided(x: Tensor, level: Level, cond: Cond) -> Tensor:
            nonlocal latest
            if rule.remembers and level.progress <= latest:
                raise ValueError(
                    f"{self.rule!r} remembers earlier steps, so it can be asked once a step; it was asked again at "
                    f"progress {level.progress:.3g}. Use a solver of one call a step, no recurrence, or no momentum."
                )
            latest = level.progress
            if not self.when(level):
                return evaluate(denoiser, x, level, cond, (ASKED,))[0]
            found = evaluate(denoiser, x, level, cond, rule.needs(level), self.concepts, weak)
            return to_x0(rule(level, *(from_x0(x0, x, level, self.space) for x0 in found)), x, level, self.space)

        return guided

    @property
    def _mark(self) -> str:
        return f"{id(self)}.slot"

    def _marked(self, state: State) -> State:
        """Every particle noted where it is, so that a gather will show."""
        return replace(state, memory={**state.memory, self._mark: torch.arange(len(state.x))})
