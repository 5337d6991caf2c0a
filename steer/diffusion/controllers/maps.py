"""Where a run looks at its words: token maps, kept along the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from steer.diffusion.attention import (
    Ask,
    Attend,
    Site,
    TokenMaps,
    attending,
    grid,
    groups,
    looked,
    placed,
    sites,
)
from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.state import Level, State

KEPT, LOOKS = "map of ", "maps"  # in the memory of a state: sums by site, and of how many looks they are


@dataclass(frozen=True)
class Maps(Controller):
    """Keeps the attention maps of chosen tokens, averaged over heads and steps, and edits nothing.

        A[p, k, y, x] = mean over heads and steps of softmax(q_yx K^T / sqrt(d))[k]

    network  the module that the denoiser calls
    tokens   positions among the text's tokens; None: all
    layers   regular expression that is searched for in the names of its sites of cross- or joint attention
    sides    heights of the maps that are kept; (): of all
    ratio    height : width of the picture
    found    after a run: {name of the site: (particles, tokens, h, w)}

    Of guidance's branches the conditional one counts. The particles are those of the last look, each with the maps of
    its ancestors. `during(maps, start, stop)` keeps those of a stretch of the run. In a list it stands after guidance
    and before a search. Rows that are equal are not shared. Raises ValueError if no site has such a name.
    """

    network: nn.Module = field(repr=False)
    tokens: tuple[int, ...] | None = None
    layers: str = ""
    sides: tuple[int, ...] = ()
    ratio: float = 1.0
    found: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _call: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    couples_rows = True

    def __post_init__(self):
        self._sites()

    def mean(self, side: int | None = None) -> Tensor:
        """(particles, tokens, h, w): the mean over sites, brought to the grid of height `side`; None: the finest one's.

        Raises ValueError before the first run, and if no site has maps of one of the `sides`.
        """
        if not self.found:
            raise ValueError(
                f"no maps of sides {self.sides or 'any'} were kept: run a pipeline under {self!r} first, with sides "
                "that its network has."
            )
        maps = TokenMaps(ratio=self.ratio)
        maps.found.update(self.found)
        return maps.mean(side)

    def start(self, state: State) -> State:
        self.found.clear()
        self._call.clear()
        return state

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def watched(x: Tensor, level: Level, cond: Any) -> Tensor:
            self._call.clear()
            with attending(self.network, self._sites(), partial(self._note, x)):
                return denoiser(x, level, cond)

        return watched

    def look(self, state: State) -> State:
        memory = dict(state.memory)
        if self._call:
            for name, maps in self._call.items():
                memory[KEPT + name] = memory.get(KEPT + name, 0) + maps[: len(state.x)]
            memory[LOOKS] = memory.get(LOOKS, torch.zeros(len(state.x))) + 1
            self._call.clear()
        if state.finished and LOOKS in memory:
            looks = memory[LOOKS][:, None, None, None]
            self.found.update(
                {name.removeprefix(KEPT): m / looks.to(m.device) for name, m in memory.items() if name.startswith(KEPT)}
            )
        return replace(state, memory=memory)

    def _sites(self) -> list[Site]:
        return sites(self.network, ("cross", "joint"), self.layers)

    def _note(self, x: Tensor, ask: Ask, attend: Attend) -> Tensor:
        """Keeps the maps of the first call that reaches a site: guidance may ask once more, with a weaker network."""
        height, width = grid(ask.query[..., ask.picture, :].shape[-2], self.ratio)
        if ask.site.name not in self._call and height in (self.sides or (height,)):
            shares, output = looked(ask, slice(None) if self.tokens is None else self.tokens)
            maps = rearrange(shares.detach(), "rows (h w) tokens -> rows tokens h w", h=height, w=width)
            branches = groups(maps, placed(x).total)
            self._call[ask.site.name] = branches[min(1, len(branches) - 1)]  # unconditional first, if it is there
            return attend(ask) if output is None else output
        return attend(ask)
