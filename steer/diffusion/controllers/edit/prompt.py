"""Prompt-to-Prompt: the attention maps of a recorded picture for another prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from steer.diffusion.attention import Ask, Attend, Site, attending, probabilities, sites
from steer.diffusion.controllers.edit.align import Alignment
from steer.diffusion.controllers.edit.source import Rows, Sourced
from steer.diffusion.controllers.edit.words import Foreground, Words, check_words
from steer.diffusion.state import Level


@dataclass(frozen=True)
class PromptToPrompt(Sourced):
    """The conditional branch with attention maps of the source. See `steer.edit.prompt_to_prompt`.

    alignment   whose maps a token has; None: every token that of its own place
    cross       fraction of the run up to which the words' maps are the source's
    self        that for the queries and keys of self-attention, at sites of at most resolution^2 tokens of a picture
    weights     {position among the particles' tokens: factor of its map}, while `cross` lasts
    blend       words; outside of where they are looked at, x0 is the source's, from the fraction blend_from on
    threshold   of a place's share of the most looked-at place, above which it belongs to the words
    """

    alignment: Alignment | None = None
    cross: float = 0.8
    self_: float = 0.4
    resolution: int = 32
    weights: Mapping[int, float] = field(default_factory=dict)
    blend: Words | None = None
    blend_from: float = 0.2
    threshold: float = 0.3

    def __post_init__(self):
        super().__post_init__()
        if not (0 <= self.cross <= 1 and 0 <= self.self_ <= 1 and 0 <= self.blend_from <= 1 and self.resolution >= 0):
            raise ValueError(
                f"{self!r}: expected cross, self_ and blend_from in [0, 1], fractions of the run, and resolution >= 0."
            )
        check_words(self.blend)
        self._words()
        if self.self_ > 0:
            self._pictures()

    @property
    def idle(self) -> bool:
        return self.cross == self.self_ == 0 and (self.blend is None or self.blend_from == 1)

    def acts(self, level: Level) -> bool:
        return level.progress < max(self.cross, self.self_) or self._blends(level)

    @contextmanager
    def editing(self, x: Tensor, level: Level) -> Iterator[Foreground | None]:
        seen = None
        with ExitStack() as stack:
            if level.progress < self.cross:
                mapped = partial(self._mapped, x)
                stack.enter_context(attending(self.network, self._words(), mapped, ("output",)))
            if level.progress < self.self_:  # entered later and so applied before: maps are those of what it leaves
                shared = partial(self._shared, x)
                stack.enter_context(attending(self.network, self._pictures(), shared, ("query", "key")))
            if self.blend is not None and self._blends(level):
                seen = Foreground(self.blend, x)
                stack.enter_context(attending(self.network, self._words(), seen))
            yield seen

    def finish(self, x0: Tensor, found: Foreground | None, level: Level) -> Tensor:
        """LocalBlend on x0: a deterministic step carries it to x, where the paper blends."""
        if found is None:
            return x0
        packed, count = x0.ndim == 3, found.rows.particles
        shares = found.shares(found.mean().shape[-2:] if packed else x0.shape[-2:]) > self.threshold
        words = shares[:-1] | shares[-1:]
        words = words.flatten(1)[..., None] if packed else words[:, None]
        return torch.cat([torch.where(words, x0[:count], self.source.latents.to(x0)), x0[count:]])

    def _words(self) -> list[Site]:
        return sites(self.network, ("cross", "joint"))

    def _pictures(self) -> list[Site]:
        return sites(self.network, ("self", "joint"))

    def _blends(self, level: Level) -> bool:
        return self.blend is not None and level.progress >= self.blend_from

    def _shared(self, x: Tensor, ask: Ask, attend: Attend) -> Tensor:
        few = ask.query[..., ask.picture, :].shape[-2] <= self.resolution**2
        return attend(Rows.of(x).taking(ask, ("query", "key"), every=False) if few else ask)

    def _mapped(self, x: Tensor, ask: Ask, attend: Attend) -> Tensor:
        """What came out, corrected for the difference of the maps: no map of all tokens by all is kept.

        In joint attention what the words' maps gain, the picture's own lose, so that a row still sums to one.
        """
        rows, out = Rows.of(x), attend(ask).clone()
        asked = rows.asked(ask)
        maps, values = probabilities(asked), rows.mine(asked.value)[..., asked.words, :]
        before = rows.mine(maps)
        after = self._weighed(self._aligned(rows.theirs(maps).expand_as(before), before))
        read = rows.mine(rows.conditional(out))[..., ask.picture, :]
        change = (after - before).to(values) @ values
        if ask.site.kind == "joint":
            rest = (1 - after.sum(-1, keepdim=True)).clamp(min=0) / (1 - before.sum(-1, keepdim=True)).clamp(min=1e-6)
            change = change + (rest - 1).to(values) * (read - before.to(values) @ values)
        read += change
        return out

    def _aligned(self, source: Tensor, own: Tensor) -> Tensor:
        return source if self.alignment is None else self.alignment(source, own)

    def _weighed(self, maps: Tensor) -> Tensor:
        if not self.weights:
            return maps
        if (far := max(self.weights)) >= maps.shape[-1] or min(self.weights) < 0:
            raise ValueError(f"weights for token {far}, but the network reads {maps.shape[-1]} tokens of text.")
        factor = torch.ones(maps.shape[-1], device=maps.device)
        factor[list(self.weights)] = torch.tensor(list(self.weights.values()), device=maps.device)
        return maps * factor
