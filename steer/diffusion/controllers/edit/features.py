"""A source's self-attention and features: MasaCtrl and plug-and-play."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steer.diffusion.attention import Ask, Attend, attending, grid, groups, sites
from steer.diffusion.controllers.edit.source import Rows, Sourced, decoder
from steer.diffusion.controllers.edit.words import Foreground, Words, check_words
from steer.diffusion.controllers.guidance.layers import chosen
from steer.diffusion.state import Level


@dataclass(frozen=True)
class MasaCtrl(Sourced):
    """The particles' own queries with the source's keys and values. See `steer.edit.masactrl`.

    from_step  fraction of the run from which on it acts
    layers     a regular expression for the names of the sites; None: the decoder's last
    words      of the object: what lies on it looks at the source's object alone, the rest at the rest
    threshold  of a place's share of the most looked-at place, above which it belongs to the object
    """

    from_step: float = 0.08
    layers: str | None = None
    words: Words | None = None
    threshold: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.from_step <= 1:
            raise ValueError(f"{self!r}: expected from_step in [0, 1], a fraction of the run.")
        check_words(self.words)
        decoder(self.network, self.layers)

    @property
    def idle(self) -> bool:
        return self.from_step == 1

    def acts(self, level: Level) -> bool:
        return level.progress >= self.from_step

    @contextmanager
    def editing(self, x: Tensor, level: Level) -> Iterator[None]:
        seen = None if self.words is None else Foreground(self.words, x)
        with ExitStack() as stack:
            where, edit = decoder(self.network, self.layers), partial(self._edit, x, seen)
            stack.enter_context(attending(self.network, where, edit, ("key", "value", "mask")))
            if seen is not None:  # entered last, so that a joint site is seen before it is edited
                stack.enter_context(attending(self.network, sites(self.network, ("cross", "joint")), seen))
            yield

    def _edit(self, x: Tensor, seen: Foreground | None, ask: Ask, attend: Attend) -> Tensor:
        rows = Rows.of(x)
        taken = rows.taking(ask, ("key", "value"))
        if seen is None or not seen.found:  # no words were read yet in this call
            return attend(taken)
        where = self._object(seen, taken)
        mine, theirs = where[:-1], where[-1:]
        out, beyond = (attend(_looking(rows, taken, there)) for there in (theirs, ~theirs))
        out = out.clone()
        here, rest = (rows.mine(groups(part, rows.size))[..., ask.picture, :] for part in (out, beyond))
        here.copy_(torch.where(mine[:, None, :, None], here, rest))
        return out

    def _object(self, seen: Foreground, ask: Ask) -> Tensor:
        """(particles + 1, picture tokens) whether each belongs to the object; last, the source's."""
        shape = grid(ask.query[..., ask.picture, :].shape[-2], seen.ratio)
        return (seen.shares(shape) > self.threshold).flatten(1)


def _looking(rows: Rows, ask: Ask, where: Tensor) -> Ask:
    """The ask whose particles' rows see, of the picture, only `where` (1, tokens); all of it if that is nothing."""
    seen = torch.ones(len(ask.key), 1, 1, ask.key.shape[-2], dtype=torch.bool, device=ask.key.device)
    rows.mine(groups(seen, rows.size))[..., ask.picture] = where if where.any() else torch.ones_like(where)
    if ask.mask is None:
        return ask.change(mask=seen)
    both = ask.mask & seen if ask.mask.dtype == torch.bool else ask.mask.masked_fill(~seen, -torch.inf)
    return ask.change(mask=both)


@dataclass(frozen=True)
class PlugAndPlay(Sourced):
    """The source's queries and keys, and features of its residual blocks. See `steer.edit.plug_and_play`.

    attention  fraction of the run up to which queries and keys are the source's
    features   that for what the residual blocks add
    layers     a regular expression for the names of the attention sites; None: the decoder's
    blocks     a regular expression for the names of residual blocks; None: that of the paper in a UNet, none elsewhere;
               "": none
    """

    attention: float = 0.5
    features: float = 0.8
    layers: str | None = None
    blocks: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not (0 <= self.attention <= 1 and 0 <= self.features <= 1):
            raise ValueError(f"{self!r}: expected attention and features in [0, 1], fractions of the run.")
        decoder(self.network, self.layers)
        self._blocks()

    @property
    def idle(self) -> bool:
        return self.attention == 0 and (self.features == 0 or not self._blocks())

    def acts(self, level: Level) -> bool:
        return level.progress < self.attention or (level.progress < self.features and bool(self._blocks()))

    @contextmanager
    def editing(self, x: Tensor, level: Level) -> Iterator[None]:
        with ExitStack() as stack:
            if level.progress < self.attention:
                where, edit = decoder(self.network, self.layers), partial(_shared, x)
                stack.enter_context(attending(self.network, where, edit, ("query", "key")))
            for block in self._blocks() if level.progress < self.features else []:
                stack.enter_context(_injected(block.conv2, x))
            yield

    def _blocks(self) -> list[nn.Module]:
        layers = self.blocks
        if layers is None:
            layers = r"up_blocks\.1\.resnets\.1$" if hasattr(self.network, "up_blocks") else ""
        return chosen(self.network, layers, _is_residual, "residual block") if layers else []


def _shared(x: Tensor, ask: Ask, attend: Attend) -> Tensor:
    return attend(Rows.of(x).taking(ask, ("query", "key")))


def _is_residual(module: Any) -> bool:
    return hasattr(module, "conv1") and hasattr(module, "conv2") and not isinstance(module, nn.Conv2d)


@contextmanager
def _injected(layer: nn.Module, x: Tensor) -> Iterator[None]:
    """While active, a layer answers the particles' rows of a branch with the source's."""

    def inject(_: nn.Module, args: tuple, out: Tensor) -> Tensor:
        rows, out = Rows.of(x), out.clone()
        branches = groups(out, rows.size)
        rows.mine(branches).copy_(rows.theirs(branches).expand_as(rows.mine(branches)))
        return out

    handle = layer.register_forward_hook(inject)
    try:
        yield
    finally:
        handle.remove()
