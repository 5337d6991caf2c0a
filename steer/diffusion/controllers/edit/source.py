"""A source beside the particles: its row in every network call, and what the particles' rows take from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from steer.diffusion.attention import Ask, Site, beside, groups, placed, sites
from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.controllers.style.core import decoder as last_blocks
from steer.diffusion.state import Level, State
from steer.diffusion.trajectory import Trajectory


@dataclass(frozen=True)
class Sourced(Controller):
    """A controller that evaluates a source picture in the particles' network calls: a row more a branch and call.

    network     the module that the denoiser calls
    source      one picture's trajectory, with the levels of the run
    same_noise  every particle starts from the source's noise

    In a list it stands after guidance, which asks what lies inside of it for single branches. Raises ValueError for a
    trajectory of several pictures, and in a run whose latents or levels are not the source's.
    """

    network: nn.Module = field(repr=False)
    source: Trajectory
    same_noise: bool = field(default=True, kw_only=True)

    def __post_init__(self):
        one_picture(self.source.x[0], "a source")

    @property
    def idle(self) -> bool:
        """Whether it acts at no level."""
        raise NotImplementedError

    def acts(self, level: Level) -> bool:
        """Whether it acts at this one; elsewhere the source is not evaluated."""
        raise NotImplementedError

    def editing(self, x: Tensor, level: Level) -> AbstractContextManager[Any]:
        """While active, a call of the network on x (b, ...), the source after it, is edited."""
        raise NotImplementedError

    def finish(self, x0: Tensor, found: Any, level: Level) -> Tensor:
        """x0 (b, ...) of the call's rows as it leaves, particles first; `found` is what `editing` yielded."""
        return x0

    def start(self, state: State) -> State:
        noise = self.source.noise
        if noise.shape[1:] != state.x.shape[1:]:
            raise ValueError(
                f"the source has latents {tuple(noise.shape[1:])}, the run {tuple(state.x.shape[1:])}; record or "
                "invert it at the size, and with the pipeline, of the run."
            )
        if not self.same_noise:
            return state
        x = noise.to(state.x).expand_as(state.x).clone()
        return replace(state, x=x, label=state.label // state.n * state.n)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def edited(x: Tensor, level: Level, cond: Any) -> Tensor:
            if not self.acts(level):
                return denoiser(x, level, cond)
            with self.editing(x, level) as found:
                x0 = beside(denoiser, x, level, cond, self.source.at(level), self.source.cond)
            return self.finish(x0, found, level)

        return denoiser if self.idle else edited


class Rows(NamedTuple):
    """How the rows of a branch lie: `size` in all, the particles first, the source's somewhere after them.

    Parts of an ask are (branches * size, heads, tokens, d).
    """

    size: int
    particles: int
    source: int

    @classmethod
    def of(cls, x: Tensor) -> Rows:
        """Those of the call under way, in which a source was put beside x (b, ...)."""
        return cls(placed(x).total, placed(x).particles, len(x))

    def conditional(self, part: Tensor) -> Tensor:
        """(size, ...) a view: the conditional branch, which comes second, or alone."""
        branches = groups(part, self.size)
        return branches[min(1, len(branches) - 1)]

    def mine(self, branches: Tensor) -> Tensor:
        """(..., particles, ...) a view of (..., size, heads, tokens, d)."""
        return branches[..., : self.particles, :, :, :]

    def theirs(self, branches: Tensor) -> Tensor:
        """(..., 1, ...) a view of (..., size, heads, tokens, d): the source's."""
        return branches[..., self.source : self.source + 1, :, :, :]

    def asked(self, ask: Ask) -> Ask:
        """The conditional branch alone."""
        mask = ask.mask if ask.mask is None or len(ask.mask) == 1 else self.conditional(ask.mask)
        parts = {name: self.conditional(getattr(ask, name)) for name in ("query", "key", "value")}
        return ask.change(mask=mask, **parts)

    def taking(self, ask: Ask, parts: Sequence[str], every: bool = True) -> Ask:
        """The ask with the source's parts for the particles' tokens of the picture, in one branch or in every."""
        taken = {}
        for name in parts:
            taken[name] = getattr(ask, name).clone()
            branches = groups(taken[name], self.size) if every else self.conditional(taken[name])
            self.mine(branches)[..., ask.picture, :] = self.theirs(branches)[..., ask.picture, :]
        return ask.change(**taken)


def one_picture(x: Tensor, what: str) -> None:
    """Raises ValueError unless x is (1, ...)."""
    if len(x) != 1:
        raise ValueError(f"{what} of {len(x)} pictures: expected one; edit one picture a call.")


def decoder(network: nn.Module, layers: str | None) -> list[Site]:
    """Sites of self- or joint attention with `layers` in their names, or the decoder's. ValueError if there is none."""
    return last_blocks(network) if layers is None else sites(network, ("self", "joint"), layers)
