"""Maps of attention asked of a running network, and the gradient of a loss of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steer.diffusion.attention import Site, TokenMaps, attending, sites
from steer.diffusion.control import Denoiser
from steer.diffusion.controllers.compose.grammar import parse
from steer.diffusion.controllers.compose.objectives import Loss, Seen
from steer.diffusion.controllers.compose.tokens import Tokenizers, streams
from steer.diffusion.controllers.compose.words import Parse
from steer.diffusion.controllers.gradients.value import finite
from steer.diffusion.controllers.when import live
from steer.diffusion.state import Level, State


class Question(Level):
    """A level at which the network is asked for maps, by one reader, in place of x0."""

    reader: Any = None


@dataclass(frozen=True)
class Reader:
    """Asks a network where a picture looks at the words of its prompt: conditional branch only, one row a particle.

    network    the module that the denoiser calls
    tokenizer  see `tokens.Tokenizers`
    parse      what a prompt asks for
    layers     regular expression that is searched for in the names of its sites of cross- or joint attention
    side       height of the maps that count, mean over their sites and heads; None: the largest that is no larger than
               the papers' 16, else the smallest
    padding    True: shares of attention are among all tokens but the first and the last, as the papers have it for SD;
               False: among the prompt's own words, as SAGA has it for SD3, and for networks whose attention rests on
               padding

    A controller that reads lets it `wrap` the denoiser and hands it states. Attention of controllers listed before it
    is edited while it reads, those under `during` excepted; guidance must be listed before it.

    Raises ValueError if no site has such a name; in a run for prompts without entities, for words without tokens, and
    for a `side` that no site has.
    """

    network: nn.Module = field(repr=False)
    tokenizer: Tokenizers = field(repr=False)
    parse: Parse = parse
    layers: str = ""
    side: int | None = None
    padding: bool = True

    def __post_init__(self):
        self._sites()

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def answering(x: Tensor, level: Level, cond: Any) -> Tensor:
            asked = getattr(level, "reader", None) is self
            return self._answer(denoiser, x, level, cond) if asked else denoiser(x, level, cond)

        return answering

    def maps(self, state: State, x: Tensor, label: Tensor | None = None) -> Tensor:
        """(P n, tokens, h, w) maps of all tokens of the text for x at the state's level; every row is counted.

        label  slots of one label that hold equal x are evaluated once; None: pruned slots share their speaker's
        """
        if state.network is None:
            raise ValueError("there is no network to read before the first step and at the finished sample.")
        question = Question(*state.level)
        question.reader = self
        answer = state.network(x, question, state.alias if label is None else label)
        if answer.ndim != 4 or not torch.isinf(answer[:, -1]).all():
            raise ValueError(
                "the maps of attention did not come back from the network: a controller listed after this one mixes "
                "the branches of guidance. List guidance before controllers that read attention."
            )
        return answer[:, :-1]

    def values(self, state: State, maps: Tensor, loss: Loss) -> Tensor:
        """(P n,) the loss of each row's maps."""
        every = zip(state.run.prompts, maps.unflatten(0, (len(state.run.prompts), -1)), strict=True)
        return torch.cat([loss(self.seen(rows, text, k)) for k, (text, rows) in enumerate(every)])

    def seen(self, maps: Tensor, text: str, image: int = 0) -> Seen:
        """What maps (rows, tokens, h, w) say of a prompt."""
        return Seen(maps, self.parse(text), streams(self.tokenizer, maps.shape[1]), image, self.padding)

    def slope(self, state: State, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """The loss (P n,) at x and its gradient by x: one forward and one backward row for each live particle."""
        ledger, before = state.run.ledger, state.run.ledger.rows
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.values(state, self.maps(state, x), loss)
            ran = ledger.rows - before
            (gradient,) = torch.autograd.grad(value[live(state).flatten().to(value.device)].sum(), x)
        ledger.backward_rows += ran
        return value.detach(), finite(gradient, state)

    def check(self, state: State) -> None:
        """Raises ValueError for prompts that cannot be read."""
        for text in set(state.run.prompts):
            found = self.parse(text)
            fits = streams(self.tokenizer, 10**9)
            for phrase in (p for entity in found.entities for p in (entity.name, *entity.attributes)):
                for stream in fits:
                    stream.positions(text, phrase)

    def _answer(self, denoiser: Denoiser, x: Tensor, level: Level, cond: Any) -> Tensor:
        if not (isinstance(cond, dict) and cond):
            raise ValueError(
                f"maps need conditioning {{argument: (b, branches, ...)}}, and got {type(cond).__name__}; pass "
                "cond=denoiser_of(pipe, prompt).cond to `sample`."
            )
        own = {name: leaf[:, -1:] for name, leaf in cond.items()}
        # past its interval guidance asks for the conditional branch alone
        late = Level(level.alpha, level.sigma, level.t, math.inf)
        seen = TokenMaps(ratio=x.shape[-2] / x.shape[-1] if x.ndim == 4 else 1.0)
        with attending(self.network, self._sites(), seen):
            denoiser(x, late, own)
        maps = self._chosen(seen)[: len(x)]
        stamp = torch.full_like(maps[:, :1], torch.inf)  # inf - inf is NaN: shows that somebody mixed answers
        return torch.cat([maps, stamp], 1)

    def _chosen(self, seen: TokenMaps) -> Tensor:
        heights = sorted({maps.shape[-2] for maps in seen.found.values()})
        side = self.side or max([h for h in heights if h <= 16], default=heights[0])
        found = [maps for maps in seen.found.values() if maps.shape[-2] == side]
        if not found:
            raise ValueError(f"side = {side}, but the maps of this network have the heights {heights}.")
        return torch.stack(found).mean(0)

    def _sites(self) -> list[Site]:
        return sites(self.network, ("cross", "joint"), self.layers)
