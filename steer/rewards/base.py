"""A reward is a value: a frozen configuration that scores pictures or texts, and an algebra over such values."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from numbers import Real

import torch
from torch import Tensor

from steer.rewards.border import checked


class Reward:
    """(images float (b, 3, h, w) in [0, 1], prompts, one a picture) -> (b,) float32, higher is better.

    A subclass is a frozen dataclass with `score`; the call checks its input (ValueError), cuts it into chunks of
    `batch` pictures, and gives a picture that contains NaN the score NaN. Rewards add, subtract and scale:
    `0.7 * ClipScore() + 0.3 * Sharpness() - Compressibility()`.

    differentiable  scores carry a gradient to the pictures; without it the call runs under no_grad
    needs_decode    it looks at pictures; False: at latents (b, ...), which are passed on unchecked
    medium          "pictures", "latents", or "texts" of a `TextReward`: what is scored; only like adds to like
    pointwise       a picture's score does not depend on the other pictures of the call
    batch           the largest chunk that `score` is given, or None for the whole call
    """

    differentiable: bool = False
    needs_decode: bool = True
    pointwise: bool = True
    batch: int | None = None
    medium = property(lambda self: "pictures" if self.needs_decode else "latents")

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        raise NotImplementedError

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        images, prompts = checked(images, prompts, self.medium)
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"{self!r} has batch = {self.batch}: expected at least 1, or None for no limit.")
        if not len(images):
            return torch.zeros(0, device=getattr(images, "device", None))
        step = self.batch or len(images)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            parts = [self._chunk(images[k : k + step], prompts[k : k + step]) for k in range(0, len(images), step)]
            return torch.cat(parts)

    def _chunk(self, images: Tensor, prompts: list[str]) -> Tensor:
        scores = self.score(images, prompts)
        if scores.shape != (len(images),):
            raise ValueError(
                f"{self!r} returned shape {tuple(scores.shape)}; expected one score a {self.medium[:-1]}: "
                f"({len(images)},)."
            )
        if not isinstance(images, Tensor):
            return scores.float()
        broken = images.detach().flatten(1).isnan().any(1)
        return scores.to(images.device, torch.float32).masked_fill(broken, torch.nan)

    def zscored(self) -> ZScored:
        """Standardised among the pictures of one call that share a prompt: see `ZScored`."""
        return ZScored(self)

    def cached(self, size: int = 4096) -> Cached:
        """Remembers the scores of the last `size` (picture, prompt) pairs: see `Cached`."""
        return Cached(self, size)

    def __mul__(self, weight: float) -> Reward:
        return Scaled(float(weight), self) if isinstance(weight, Real) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> Reward:
        return -1.0 * self

    def __add__(self, other: Reward) -> Reward:
        return Sum((*_terms(self), *_terms(other))) if isinstance(other, Reward) else NotImplemented

    def __sub__(self, other: Reward) -> Reward:
        return self + -other if isinstance(other, Reward) else NotImplemented


def _terms(reward: Reward) -> tuple[Reward, ...]:
    return reward.rewards if isinstance(reward, Sum) else (reward,)


@dataclass(frozen=True)
class Sum(Reward):
    """r(x) = sum of r_k(x). All must look at pictures, or all at latents, or all at texts (ValueError)."""

    rewards: tuple[Reward, ...]

    def __post_init__(self):
        if len({reward.medium for reward in self.rewards}) != 1:
            raise ValueError(
                f"{self.rewards}: expected at least one, all on pictures or all on latents or all on texts."
            )

    differentiable = property(lambda self: all(reward.differentiable for reward in self.rewards))
    needs_decode = property(lambda self: self.rewards[0].needs_decode)
    medium = property(lambda self: self.rewards[0].medium)
    pointwise = property(lambda self: all(reward.pointwise for reward in self.rewards))

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.stack([reward(images, prompts) for reward in self.rewards]).sum(0)


class Wrapper(Reward):
    """A reward around one other, `reward`, with its flags."""

    reward: Reward
    differentiable = property(lambda self: self.reward.differentiable)
    needs_decode = property(lambda self: self.reward.needs_decode)
    medium = property(lambda self: self.reward.medium)
    pointwise = property(lambda self: self.reward.pointwise)


@dataclass(frozen=True)
class Scaled(Wrapper):
    """weight * r(x); the weight is finite (ValueError)."""

    weight: float
    reward: Reward

    def __post_init__(self):
        if not math.isfinite(self.weight):
            raise ValueError(f"weight {self.weight} of {self.reward!r}: expected a finite number.")

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.weight * self.reward(images, prompts)


@dataclass(frozen=True)
class ZScored(Wrapper):
    """(r(x) - mean) / std over the pictures of one call that share x's prompt: units no longer matter in a sum.

    Population std over the finite scores; a group without spread, also a group of one, scores 0; NaN stays NaN. The
    values compare candidates within a call, not between calls: use it to choose, not to follow a run.
    """

    reward: Reward
    pointwise = False

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        scores = self.reward(images, prompts)
        number = {prompt: k for k, prompt in enumerate(dict.fromkeys(prompts))}
        group = torch.tensor([number[prompt] for prompt in prompts], device=scores.device)
        seen = torch.isfinite(scores)
        count = torch.zeros(len(number), device=scores.device).index_add(0, group, seen.float()).clamp_min(1)[group]

        def mean(values: Tensor) -> Tensor:
            return torch.zeros_like(count).index_add(0, group, torch.where(seen, values, 0))[group] / count

        centre = mean(scores)
        rounding = 1e-5 * centre.detach().abs() + 1e-12  # equal scores differ by this much: no spread
        apart = torch.where(seen, scores - centre, 0)
        spread = mean(apart.square()).clamp_min(1e-24).sqrt()
        return torch.where(seen, torch.where(spread > rounding, apart / spread, 0 * apart), scores)


@dataclass(frozen=True)
class Cached(Wrapper):
    """Each distinct (picture content, prompt) is scored once; the `size` most recently used are kept.

    Where a gradient is asked for nothing is cached. Raises ValueError for a reward that compares the pictures of a
    call: write `reward.cached().zscored()`.
    """

    reward: Reward
    size: int = 4096
    store: OrderedDict[bytes, Tensor] = field(default_factory=OrderedDict, init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"a cache of {self.size} scores: expected size >= 1.")
        if not self.reward.pointwise:
            raise ValueError(f"{self.reward!r} depends on the whole call; cache inside: reward.cached().zscored().")

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        if isinstance(images, Tensor) and images.requires_grad and torch.is_grad_enabled():
            return self.reward(images, prompts)
        seen = images.cpu() if isinstance(images, Tensor) else images
        keys = [_key(image, prompt) for image, prompt in zip(seen, prompts)]
        known = {key: self.store.pop(key) for key in dict.fromkeys(keys) if key in self.store}
        fresh = list({key: k for k, key in enumerate(keys) if key not in known}.values())
        if fresh:
            some = images[fresh] if isinstance(images, Tensor) else [images[k] for k in fresh]
            scores = self.reward(some, [prompts[k] for k in fresh]).detach().cpu()
            known |= {keys[k]: one for k, one in zip(fresh, scores)}
        self.store.update(known)
        while len(self.store) > self.size:
            self.store.popitem(last=False)
        return torch.stack([known[key] for key in keys])


def _key(image: Tensor | str, prompt: str) -> bytes:
    if isinstance(image, str):
        return blake2b(repr((image, prompt)).encode(), digest_size=16).digest()
    digest = blake2b(repr((tuple(image.shape), prompt)).encode(), digest_size=16)
    digest.update(image.detach().contiguous().numpy().tobytes())
    return digest.digest()
