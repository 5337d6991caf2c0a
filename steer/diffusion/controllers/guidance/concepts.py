"""Rules with concepts of their own: what a picture should be kept away from, or pushed towards, beside its prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steer.diffusion.controllers.guidance.branches import ASKED, CONCEPT, FREE
from steer.diffusion.controllers.guidance.core import Rule
from steer.diffusion.state import Level


@dataclass(frozen=True)
class Push(Rule):
    """u + w (c - u) + g, and from `warmup` on only, with g <- push + m v and then v <- d v + (1 - d) g.

    weight    w, of the prompt
    warmup    fraction of the run during which g is gathered but not yet applied
    momentum  m >= 0; without it nothing is remembered
    decay     0 <= d < 1
    """

    weight: float
    warmup: float
    momentum: float
    decay: float

    def push(self, free: Tensor, asked: Tensor, *concepts: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        return self.momentum > 0

    def begin(self) -> Rule:
        return _Pushing(self)


@dataclass
class _Pushing(Rule):
    """A push in the middle of one run."""

    rule: Push
    average: Tensor | float = 0.0

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        return self.rule.remembers

    def needs(self, level: Level) -> tuple[int, ...]:
        return self.rule.needs(level)

    def __call__(self, level: Level, *branches: Tensor) -> Tensor:
        free, asked, *concepts = branches
        guided = free + self.rule.weight * (asked - free)
        if not concepts:
            return guided
        push = self.rule.push(free, asked, *concepts) + self.rule.momentum * self.average
        if self.rule.remembers:
            self.average = self.rule.decay * self.average + (1 - self.rule.decay) * push
        return guided if level.progress < self.rule.warmup else guided + push


@dataclass(frozen=True)
class Away(Push):
    """Safe latent diffusion: push = -w mu (s - u), mu = min(1, scale |c - s|) where c - s < threshold, else 0."""

    scale: float
    threshold: float

    def needs(self, level: Level) -> tuple[int, ...]:
        idle = self.scale == 0 or (level.progress < self.warmup and not self.remembers)
        return (FREE, ASKED) if idle else (FREE, ASKED, CONCEPT)

    def push(self, free: Tensor, asked: Tensor, *concepts: Tensor) -> Tensor:
        (unsafe,) = concepts
        apart = asked - unsafe
        strength = (self.scale * apart.abs()).clamp(max=1) * (apart < self.threshold)
        return -self.weight * strength * (unsafe - free)


@dataclass(frozen=True)
class Edit(Push):
    """Semantic guidance: push = sum over concepts of scale (e - u), where |e - u| reaches its `quantile`.

    The quantile is taken over each channel of a sample (b, c, h, w), over the whole sample of any other shape.
    """

    scales: tuple[float, ...]
    quantile: float

    def needs(self, level: Level) -> tuple[int, ...]:
        idle = not any(self.scales) or (level.progress < self.warmup and not self.remembers)
        return (FREE, ASKED) if idle else (FREE, ASKED, *range(CONCEPT, CONCEPT + len(self.scales)))

    def push(self, free: Tensor, asked: Tensor, *concepts: Tensor) -> Tensor:
        return sum(
            (scale * self._strongest(e - free) for scale, e in zip(self.scales, concepts)), torch.zeros_like(free)
        )

    def _strongest(self, direction: Tensor) -> Tensor:
        size = direction.abs().flatten(2 if direction.ndim == 4 else 1)
        size = size.to(torch.promote_types(size.dtype, torch.float32))  # half precision has no quantile
        bar = torch.quantile(size, self.quantile, dim=-1)
        return direction * (direction.abs() >= bar.reshape(bar.shape + (1,) * (direction.ndim - bar.ndim)))
