"""The one step of gradient guidance, of which the methods in `gradients` are settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steer.diffusion.control import Controller
from steer.diffusion.controllers.gradients.rules import THROUGH, Rule, pull
from steer.diffusion.controllers.gradients.value import (
    OwnNoise,
    Passed,
    Reward,
    Slope,
    Smoothing,
    at_x0,
    check_reward,
    through_network,
)
from steer.diffusion.solve import noise_scale, renoised, transition
from steer.diffusion.state import State


@dataclass(frozen=True)
class Gradient(Controller):
    """The unified step of TFG (arXiv 2409.15761, algorithm 1) on log f(x0) = beta r(x0), at every look:

        x0 <- x0(x) + through(grad_x log f(x0(x)))              through the network: one backward row for each row
                    + direct(grad_x0 log f(x0 + D)) summed, D   `inner` steps on x0 itself: none
        repeated `repeats` times over x <- renoised(moved(x, x0)) where `travel` says (time travel)

    reward      differentiable, each picture's score its own; see `steer.rewards`
    through     rule of size for the first gradient, see `gradients.rules`; None: not taken
    direct      rule of size for the second
    keep_noise  True: D moves only the clean part of x', by alpha' D (TFG, MPGD); False: x0 moves by D, and the noise
                estimate with it (universal guidance)
    travel      [start, stop) in fractions of the run's steps
    smoothing   Monte-Carlo smoothing of f (LGD)

    At alpha = 0, where x says nothing of x0, no gradient is taken through the network. With all strengths zero it does
    nothing, bit for bit. Raises ValueError for a reward without gradient, at the start or, if only its graph shows it,
    at the first look. A particle whose gradient is not finite moves on unguided, with a warning.
    """

    reward: Reward
    through: Rule | None = None
    direct: Rule | None = None
    keep_noise: bool = True
    inner: int = 1
    repeats: int = 1
    travel: tuple[float, float] = (0.0, 1.0)
    smoothing: Smoothing = field(default_factory=Smoothing)
    beta: float = 1.0

    def __post_init__(self):
        if self.inner < 1 or self.repeats < 1 or not 0 <= self.travel[0] <= self.travel[1] <= 1:
            raise ValueError(
                f"inner = {self.inner}, repeats = {self.repeats}, travel = {self.travel}: expected at least 1 each, "
                "and 0 <= start <= stop <= 1."
            )
        if isinstance(self.direct, THROUGH):
            raise ValueError(
                f"direct = {self.direct} is a rule for the gradient through the network; use Step or Unit."
            )

    @property
    def evaluates(self) -> bool:  # type: ignore[override]
        return _acts(self.through)

    def start(self, state: State) -> State:
        check_reward(self.reward, self)
        return state

    @torch.no_grad()
    def look(self, state: State) -> State:
        if state.finished or not (_acts(self.through) or _acts(self.direct)):
            return state
        own = OwnNoise(state)
        travels = self.travel[0] <= state.i / state.steps < self.travel[1]
        for _ in range(self.repeats - 1 if travels else 0):
            state = _back(self._guided(state, own), own)
        return self._guided(state, own)

    def _guided(self, state: State, own: OwnNoise) -> State:
        offsets = self.smoothing.offsets(state.level, own, state.x)
        slope = None
        if _acts(self.through) and state.level.alpha > 0:
            slope = through_network(state, self.reward, self.beta, offsets)
            state = replace(state, x0=slope.x0)
        state = state.evaluated()
        x0 = state.x0.detach()
        edit = torch.zeros_like(x0) if slope is None else self.through(slope.by_x, slope.value, state)
        if _acts(self.direct):
            edit = edit + self._direct(state, slope, offsets)
        return replace(state, x=state.x.detach(), x0=x0 + edit.to(x0.dtype))

    def _direct(self, state: State, slope: Slope | Passed | None, offsets: Tensor | None) -> Tensor:
        moved = torch.zeros_like(state.x0)
        for _ in range(self.inner):
            slope = slope or at_x0(state, self.reward, state.x0 + moved, self.beta, offsets)
            moved = moved + self.direct(slope.by_x0, slope.value, state)
            slope = None  # the first was known from the pass through the network
        return moved * (state.to.alpha / pull(state)) if self.keep_noise else moved


def _acts(rule: Rule | None) -> bool:
    return rule is not None and getattr(rule, "strength", None) != 0


def _back(state: State, own: OwnNoise) -> State:
    """Time travel: the transition, then fresh noise back to the same level; nobody has evaluated there yet."""
    level, to = state.level, state.to
    scale = noise_scale(level, to, state.run.eta or 0.0)
    moved = transition(state.x, state.x0, level, to, scale, own.like(state.x) if scale > 0 else None)
    return replace(state, x=renoised(moved, to, level, own.like(state.x)), x0=None)
