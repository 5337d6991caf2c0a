"""The looks of a search: score the candidates, weigh them, and choose who continues."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from steer.language.decode.draw import Draws
from steer.language.decode.run import Run
from steer.language.decode.stream import Call
from steer.language.decode.texts import Texts, scored
from steer.plan import Planned, Seen

if TYPE_CHECKING:
    from steer.language.decode.search import blockwise


class Look(NamedTuple):
    """One look of a search: tokens drawn so far, scores (P, n), and every slot's ancestor `index` (P, n)."""

    tokens: int
    scores: Tensor
    index: Tensor


class Looks:
    """What a search remembers of P prompts from look to look; all (P, n), on the CPU.

    logw    log-weights, -inf where switched off
    spent   the sum of log G along the path, for the potential "diff"
    before  what the ancestor scored at the last look, -inf before the first
    known   the score of a candidate that has ended and was scored since, NaN of all others

    settled (P, 1) marks prompts whose candidates have all ended and have been weighed: there is nothing to choose.
    """

    def __init__(self, search: blockwise, call: Call, length: int | None):
        self.search, self.ledger = search, call.ledger
        self.texts = Texts(search.tokenizer, call)
        self.vocabulary = call.model.config.get_text_config().vocab_size
        own = torch.arange(search.n).expand(len(call.ids), search.n)
        first = search.n
        if isinstance(search.pick, Planned) and search.n > 1:
            between = None if length is None or search.block is None else -(-length // search.block) - 1
            first = search.pick.first(search.n, between)
        self.own = own
        self.logw = torch.zeros(own.shape).masked_fill(own >= first, -torch.inf)
        self.spent = torch.zeros(own.shape)
        self.before = torch.full(own.shape, -torch.inf)
        self.known = torch.full(own.shape, torch.nan)
        self.settled = torch.zeros(len(own), 1, dtype=torch.bool)
        self.scored = torch.zeros(len(own), dtype=torch.long)
        self.trace: list[Look] = []

    @property
    def on(self) -> Tensor:
        return ~torch.isneginf(self.logw)

    def between(self, run: Run, draws: Draws) -> tuple[Tensor, Tensor]:
        """Look at candidates of which some go on: (ancestors, which slots are on)."""
        if self.search.n == 1:
            return self.own, self.on  # there is nothing to choose
        scores = self._weighed(run)
        picked = draws.picked(self.search.pick, self.logw, self._seen(run, scores))
        index, self.logw = (torch.where(self.settled, a, b) for a, b in zip((self.own, self.logw), picked))
        self.trace.append(Look(run.tokens.shape[1], scores, index))
        self.spent, self.before, self.known = (m.gather(1, index) for m in (self.spent, scores, self.known))
        return index, self.on

    def last(self, run: Run) -> None:
        """Look at the finished candidates."""
        self.trace.append(Look(run.tokens.shape[1], self._weighed(run), self.own))

    def _weighed(self, run: Run) -> Tensor:
        """Scores (P, n), after which `logw` has log G in it."""
        scores = self._scores(run)
        failed = torch.isneginf(scores)
        value = torch.where(failed, scores, self.search.beta * scores)
        log_g = value - self.spent if self.search.potential == "diff" else value
        self.spent = torch.where(failed, self.spent, value)
        self.logw = torch.where(self.settled, self.logw, self.logw + log_g)
        self.settled |= run.done.unflatten(0, run.shape).all(1, keepdim=True).cpu()
        return scores

    def _scores(self, run: Run) -> Tensor:
        """-inf where switched off or failed; who had ended before the last look is not scored again."""
        fresh = self.on & self.known.isnan()
        rows = fresh.flatten().nonzero()[:, 0].tolist()
        texts = self.texts([run.tokens[row, : run.length[row]] for row in rows])
        prompts = [self.texts.prompts[row // self.search.n] for row in rows]
        scores = torch.where(self.on, self.known, -torch.inf)
        scores[fresh] = scored(self.search.reward, texts, prompts, self.ledger)
        self.scored += fresh.sum(1)
        if getattr(self.search.reward, "pointwise", True):
            ended = run.done.unflatten(0, run.shape).cpu() & self.on
            self.known = torch.where(ended, scores, torch.nan)
        if not torch.isfinite(scores).any(1).all():
            warnings.warn(
                f"token {run.tokens.shape[1]}: all rewards of a prompt are NaN or infinite; its candidate 0 is kept.",
                stacklevel=2,
            )
        return scores

    def _seen(self, run: Run, scores: Tensor) -> Seen:
        """For picks that look at candidates: how often each word was said stands for the text."""
        if not isinstance(self.search.pick, Planned):
            said = torch.zeros(*scores.shape, 1)
        else:
            inside = torch.arange(run.tokens.shape[1], device=run.tokens.device) < run.length[:, None]
            said = torch.zeros(len(run.tokens), self.vocabulary, device=run.tokens.device)
            said = said.scatter_add(1, run.tokens, inside.float()).unflatten(0, run.shape).cpu()
        return Seen(len(self.trace), self.scored, scores, self.before, said)
