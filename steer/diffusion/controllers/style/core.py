"""Attention to features of others, which are evaluated in the same call of the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from steer.diffusion.attention import Ask, Attend, Site, attending, beside, grid, placed, sites
from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.controllers.style.fused import fused, serves
from steer.diffusion.controllers.style.rules import Rows, Rule
from steer.diffusion.state import Level
from steer.diffusion.trajectory import Trajectory


@dataclass(frozen=True)
class Injected(Controller):
    """What the picture's tokens read becomes, by a rule, what they would read in the features of others:

        out = own + strength m (injected - own)     before the output projection

    network     the module that the denoiser calls
    references  whose features, at the noise level of the call; evaluated once a call, and their rows are paid for. None
                at all: the particles' own, which then see each other
    layers      regular expression that is searched for in the names of self- and joint attention; None: `decoder`'s
    strength    0 is no control at all, and no reference is evaluated
    mask        (h, w), m in [0, 1] over the picture; None: 1 everywhere; an empty one is no control at all
    noisiest    whether the noisiest step of the run is changed too

    Tokens of text keep their keys and values, and what they read. Raises ValueError for a network without such sites,
    references that do not go together, and bad numbers; in a run for references of another size, network or schedule.
    """

    network: nn.Module = field(repr=False)
    rule: Rule
    references: tuple[Trajectory, ...] = ()
    layers: str | None = None
    strength: float = 1.0
    mask: Tensor | None = field(default=None, repr=False)
    noisiest: bool = True

    def __post_init__(self):
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength = {self.strength}: expected 0 (no control) <= strength <= 1.")
        check_mask(self.mask)
        _agree(self.references)
        self._sites()

    @property
    def couples_rows(self) -> bool:  # type: ignore[override]
        return not self.references and not self.idle

    @property
    def idle(self) -> bool:
        """Whether it changes nothing."""
        return self.strength == 0 or empty(self.mask)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.idle:
            return denoiser

        def injected(x: Tensor, level: Level, cond: Any) -> Tensor:
            alone = not self.references and placed(x).particles == 1
            if alone or (level.progress <= 0 and not self.noisiest):
                return denoiser(x, level, cond)
            own, others = self._lie(x)
            edit = partial(self._edited, x=x, own=own, others=others)
            with attending(self.network, self._sites(), edit, self.rule.writes):
                if not self.references:
                    return denoiser(x, level, cond)
                return beside(denoiser, x, level, cond, *gathered(self.references, level))

        return injected

    def _lie(self, x: Tensor) -> tuple[slice, slice]:
        """Which rows of a branch are changed, and which are looked at."""
        particles, count = placed(x).particles, sum(one.x.shape[1] for one in self.references)
        if self.references:
            return slice(particles), slice(len(x), len(x) + count)
        return (slice(particles), slice(particles)) if self.rule.everyone else (slice(1, particles), slice(1))

    def _edited(self, ask: Ask, attend: Attend, x: Tensor, own: slice, others: slice) -> Tensor:
        rows = Rows(placed(x).total, own, others, ask.picture)
        if serves(self.rule, ask, rows):
            inside = 1.0 if self.mask is None else over_tokens(self.mask, rows.mine(ask.query).shape[-2])[:, 0]
            return fused(self.rule, ask, rows, self.strength * inside)
        (weight, first), *rest = self.rule(ask, rows)
        found = attend(first) if not rest else weight * attend(first)
        for weight, one in rest:
            found = found + weight * attend(one)
        if self.strength == 1 and self.mask is None and ask.site.kind == "self":
            return found
        plain = attend(ask)
        dial = torch.as_tensor(self.strength, dtype=plain.dtype, device=plain.device)
        if self.mask is not None:
            dial = dial * over_tokens(self.mask, rows.mine(plain).shape[-2]).to(plain)
        return rows.put(plain, rows.mine(plain).lerp(rows.mine(found), dial))

    def _sites(self) -> list[Site]:
        kinds = ("self", "joint")
        return decoder(self.network) if self.layers is None else sites(self.network, kinds, self.layers)


def decoder(network: nn.Module) -> list[Site]:
    """Self- and joint attention in the last two up blocks that have any; of a transformer, in its second half.

    In Stable Diffusion 1 and 2 these are up_blocks.2 and .3, which StyleID takes (arXiv 2312.09008).
    """
    every = sites(network, ("self", "joint"))
    block = {site.name: found.group() for site in every if (found := re.match(r"up_blocks\.\d+\.", site.name))}
    last = list(dict.fromkeys(block.values()))[-2:]
    return [site for site in every if block.get(site.name) in last] if last else every[len(every) // 2 :]


def gathered(references: Sequence[Trajectory], level: Level) -> tuple[Tensor, dict[str, Tensor]]:
    """The pictures of all references at a noise level, and their conditioning; a single branch stands for all."""
    most = max((leaf.shape[1] for one in references for leaf in one.cond.values()), default=1)
    cond = {
        name: torch.cat([one.cond[name].expand(-1, most, *one.cond[name].shape[2:]) for one in references])
        for name in references[0].cond
    }
    return torch.cat([one.at(level) for one in references]), cond


def check_mask(mask: Tensor | None) -> None:
    """Raises ValueError for what is no mask."""
    if mask is not None and (mask.ndim != 2 or mask.min() < 0 or mask.max() > 1):
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} from {float(mask.min()):.3g} to {float(mask.max()):.3g}: expected "
            "(h, w) in [0, 1], in the shape of the picture."
        )


def empty(mask: Tensor | None) -> bool:
    """Whether it is a mask without anything in it."""
    return mask is not None and not bool((mask > 0).any())


def over_tokens(mask: Tensor, tokens: int) -> Tensor:
    """(tokens, 1): a mask (h, w) averaged over the places of a picture's tokens."""
    size = grid(tokens, mask.shape[0] / mask.shape[1])
    return interpolate(mask[None, None].float(), size, mode="area").flatten()[:, None]


def _agree(references: Sequence[Trajectory]) -> None:
    kinds = {
        (tuple(one.x.shape[2:]), *sorted((name, tuple(leaf.shape[2:])) for name, leaf in one.cond.items()))
        for one in references
    }
    if len(kinds) > 1:
        raise ValueError(
            f"references of {len(kinds)} kinds: {sorted(kinds, key=str)}; make all with one pipeline and size."
        )
