"""The guiders of diffusers as rules: its own arithmetic, for every pipeline and solver that steer drives."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from steer.diffusion.controllers.guidance.branches import ASKED, FREE
from steer.diffusion.controllers.guidance.core import Rule
from steer.diffusion.state import Level

SUPPORTED = (
    "ClassifierFreeGuidance",
    "ClassifierFreeZeroStarGuidance",
    "AdaptiveProjectedGuidance",
    "AdaptiveProjectedMixGuidance",
    "FrequencyDecoupledGuidance",
    "MagnitudeAwareGuidance",
    "TangentialClassifierFreeGuidance",
)


@dataclass(frozen=True, repr=False)
class Guider(Rule):
    """A diffusers guider that is pure arithmetic on the conditional and the unconditional prediction.

    Raises ValueError for one that needs hooks or further predictions, and for one with a `start` or `stop` of its own.
    """

    guider: Any

    def __post_init__(self):
        from diffusers.guiders import BaseGuidance

        name = type(self.guider).__name__
        if not isinstance(self.guider, BaseGuidance):
            raise ValueError(f"{self.guider!r} is no diffusers guider; expected one of {', '.join(SUPPORTED)}.")
        hooks = type(self.guider).prepare_models is not BaseGuidance.prepare_models
        if hooks or self.guider._input_predictions != ["pred_cond", "pred_uncond"]:
            raise ValueError(
                f"{name} perturbs the network or takes further predictions; expected one of {', '.join(SUPPORTED)}. "
                "steer.guidance has pag, seg, slg and autoguidance for the others."
            )
        if _all(self.guider.config.start) != {0.0} or _all(self.guider.config.stop) != {1.0}:
            raise ValueError(
                f"{name} with start = {self.guider.config.start}, stop = {self.guider.config.stop}: leave both as they "
                "are, and say steer.guidance.interval(guide, progress=(start, stop))."
            )

    def __repr__(self) -> str:
        options = {name: value for name, value in self.guider.config.items() if not name.startswith("_")}
        return f"{type(self.guider).__name__}({', '.join(f'{name}={value!r}' for name, value in options.items())})"

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        return getattr(self.guider, "adaptive_projected_guidance_momentum", None) is not None

    def begin(self) -> Rule:
        return _Steps(copy.copy(self.guider), self.remembers)


@dataclass
class _Steps(Rule):
    """A guider in the middle of one run: it wants to be told the number of the step."""

    guider: Any
    remembers: bool
    step: int = field(default=-1)
    progress: float = field(default=-1.0)

    def __post_init__(self):
        self.guider.set_state(0, None, None)
        self.guider.prepare_inputs({})  # at step 0 that is what forgets the momentum of an earlier run

    def needs(self, level: Level) -> tuple[int, ...]:
        if level.progress != self.progress:
            self.step = max(self.step + 1, int(level.progress > 0))  # a run that it joins late has begun without it
            self.progress = level.progress
            self.guider.set_state(self.step, None, level.t)  # no number of steps: the guider is in range everywhere
        return (FREE, ASKED) if self.guider.num_conditions == 2 else (ASKED,)

    def __call__(self, level: Level, *branches: Tensor) -> Tensor:
        free = branches[0] if len(branches) == 2 else None
        return self.guider.forward(pred_cond=branches[-1], pred_uncond=free).pred


def _all(bounds: float | list[float] | tuple[float, ...]) -> set[float]:
    return set(bounds) if isinstance(bounds, list | tuple) else {bounds}
