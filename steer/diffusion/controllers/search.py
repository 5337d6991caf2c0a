"""Search over particles: when to look, how a score becomes a log-weight, how log-weights become ancestors.

Every method is one expression over these three choices. All score the network's fresh clean estimate of the *current*
particles, which costs no extra evaluation: N rows a step, where a look-ahead after the move costs N (1 + 1/B).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.control import Controller
from steer.diffusion.controllers.potential import FeynmanKac, Potential, Tempered, Value
from steer.diffusion.controllers.when import Adaptive, Every, facts, live
from steer.diffusion.state import Look, State
from steer.pick import Pick, greedy, one, one_in, stay, systematic, top_k, when_ess_below
from steer.plan import Planned, Seen, diverse, narrow, roll_over

Reward = Callable[[Any, list[str]], Tensor]


@dataclass(frozen=True)
class Search(Controller):
    """Score the particles, weigh them, and let the chosen ones continue.

    reward        (pictures (b, 3, h, w) in [0, 1], prompts) -> (b,), higher is better; NaN and +-inf have failed.
                  With `needs_decode = False` it is given x0 itself, latents (b, ...), and nothing is decoded. Where it
                  has a `preview`, a reward too, that one serves all looks but the last
    when          which steps to look at
    potential     scores (P, n) -> log-weights (P, n)
    pick          log-weights -> ancestors, from `steer.pick` or `steer.plan`
    common_start  all particles of a prompt start from particle 0's noise
    """

    reward: Reward
    when: Every = field(default_factory=lambda: Every(5))
    potential: Potential = field(default_factory=Value)
    pick: Pick | Planned = greedy
    common_start: bool = False

    @property
    def needs_noise(self) -> bool:  # type: ignore[override]
        """Without noise copies stay equal; a search that makes none chooses among what started apart."""
        copies = self.when.block is not None and getattr(self.pick, "copies", True)
        return self.common_start or copies

    def start(self, state: State) -> State:
        self.when.check(state.steps)
        logw = state.grouped(state.logw)
        own = torch.arange(state.n).expand_as(logw)
        if isinstance(self.pick, Planned) and state.n > 1:
            logw = torch.where(own < self.pick.first(state.n, self.when.looks(state.steps)), logw, -torch.inf)
        if not self.common_start:
            return state if torch.isfinite(logw).all() else state.gather(own, logw)
        if state.steps == 1:
            raise ValueError(
                f"{self!r} starts all particles of a prompt from one noise, but a run of 1 step draws no other: "
                "there is nothing to choose from. Use best_of_n, or common_start=False."
            )
        return state.gather(torch.zeros_like(own), logw)

    def look(self, state: State) -> State:
        seen = replace(state, memory=self.recalled(state))
        if (state.n == 1 and not state.finished) or not self._due(seen):
            return state
        scores = self.scores(state)
        log_g, memory = self.potential(scores, seen)
        logw = state.grouped(state.logw) + log_g
        memory |= facts(scores, logw, seen)
        index, left = self._pick(scores, seen)(logw, state.run.noise.pick_generator(len(state.trace)))
        memory = {**state.memory, **{self._own + name: m for name, m in memory.items()}}
        moved = replace(state, memory=memory).gather(index, left)
        taken = state.grouped(index.flatten()[moved.alias])  # a pruned slot continues what its speaker continues
        return replace(moved, trace=(*state.trace, Look(state.i, scores, taken)))

    def recalled(self, state: State) -> dict[str, Tensor]:
        """What this search remembers of its earlier looks, apart from any other search of the chain: name -> (P n,)."""
        return {name.removeprefix(self._own): m for name, m in state.memory.items() if name.startswith(self._own)}

    def log_z(self, state: State) -> Tensor:
        """(P,) the estimate of log E_p[exp(beta r(x))] of a finished run; its exponential is unbiased.

        Raises ValueError for a potential that keeps none.
        """
        memory = self.recalled(state)
        if "log_z" not in memory:
            raise ValueError(f"{self.potential!r} estimates no log Z; use FeynmanKac or Tempered, and run it.")
        return state.grouped(memory["log_z"])[:, 0]

    @property
    def _own(self) -> str:
        return f"{id(self)}."

    def _due(self, seen: State) -> bool:
        when = self.when.at(seen.memory) if isinstance(self.when, Adaptive) else self.when
        return when(seen.i, seen.steps)

    def _pick(self, scores: Tensor, seen: State) -> Pick:
        if seen.n == 1:
            return stay  # there is nothing to choose
        if not isinstance(self.pick, Planned):
            return self.pick
        look, scored, before = (
            seen.grouped(seen.memory.get(name, torch.full_like(seen.logw, default)))
            for name, default in (("looks", 0), ("scored", 0), ("score", -torch.inf))
        )
        counted = scored[:, 0] + live(seen).sum(-1)
        return self.pick.at(Seen(int(look[0, 0]), counted, scores, before, seen.grouped(seen.x0)))

    def scores(self, state: State) -> Tensor:
        """(P, n) float32 scores; -inf for pruned slots, which are not scored, and where the reward is not finite."""
        rows = live(state).flatten().nonzero()[:, 0]
        reward = self.reward if state.finished else getattr(self.reward, "preview", self.reward)
        prompts = [state.run.prompts[row // state.n] for row in rows.tolist()]
        clean = state.x0[rows.to(state.x0.device)]
        seen = state.run.decode(clean) if getattr(reward, "needs_decode", True) else clean
        state.run.ledger.reward_calls += len(rows)
        found = torch.as_tensor(reward(seen, prompts)).detach().float().cpu()
        if found.shape != (len(rows),):
            raise ValueError(
                f"{reward!r} returned shape {tuple(found.shape)}; expected one score a picture: ({len(rows)},)."
            )
        scores = torch.full((len(state.alias),), -torch.inf)
        scores[rows] = torch.where(torch.isfinite(found), found, -torch.inf)
        scores = state.grouped(scores)
        if not torch.isfinite(scores).any(-1).all():
            warnings.warn(
                f"step {state.i}: all rewards of a prompt are NaN or infinite; its particle 0 is kept.", stacklevel=2
            )
        return scores


def best_of_n(reward: Reward) -> Search:
    """The best of n independent samples."""
    return Search(reward, Every(None))


def code(reward: Reward, block: int = 5, beta: float | None = None, common_start: bool = True) -> Search:
    """CoDe, blockwise best-of-n (arXiv 2502.00968): every `block` steps all n particles continue the best one.

    Rows: n (T - 1) + 1 with the paper's common start, n T with distinct starts. `block=1` is SVDD-PM, `block=T` is
    best-of-n from one x_T. With `beta` the survivor is drawn with probability softmax(beta r) in place of the arg max.
    CoDe(eta), the reference-conditioned form, is this search on an image-to-image pipeline; T counts the steps run:

    >>> Steered(img2img_pipe, code(reward, block=5))("a red apple", n=8, image=reference, strength=eta)
    """
    if beta is None:
        return Search(reward, Every(block), Value(), greedy, common_start)
    return Search(reward, Every(block), Value(beta), one, common_start)


def svdd(reward: Reward, beta: float | None = None) -> Search:
    """Soft value-based decoding (arXiv 2408.08252): choose at every step; greedy, or softmax(beta r) with `beta`."""
    return code(reward, block=1, beta=beta)


def beam(reward: Reward, beams: int = 2, block: int = 5, diversity: float = 0.0) -> Search:
    """Beam search: every `block` steps the `beams` best particles share the n slots evenly.

    beams = 1 is CoDe with distinct starts. With n = beams x copies it is search over paths (arXiv 2501.09732), whose
    copies part here by the noise of the transition itself. `diversity` > 0 deducts diversity x cosine to the beams
    already chosen, see `pick.diverse`.
    """
    return Search(reward, Every(block), Value(), diverse(beams, diversity) if diversity else top_k(beams))


def funnel(reward: Reward, widths: Sequence[int], block: int = 5, keep: int | None = None) -> Search:
    """Fewer particles after each block: widths[j] in block j, the last until the end; call it with n = widths[0].

    keep=None   the best widths[j + 1] go on, none is copied: early pruning, also under a deterministic solver
    keep=1      the best one is continued widths[j + 1] times: CoDe with a sample schedule (UniCoDe, arXiv 2512.12339)

    Rows: with T = block x blocks the sum of block x widths, and widths[j] - widths[j + 1] more for each look, which
    comes after the evaluation of its step.
    """
    return Search(reward, Every(block), Value(), narrow(tuple(widths), keep))


def halving(reward: Reward, block: int = 5, one_of: int = 2) -> Search:
    """Successive halving of seeds (arXiv 1502.07943): after each block the better half of the n seeds goes on.

    Nothing is copied, so it serves deterministic solvers too: best-of-n that stops losers early. `one_of` = 4 keeps
    the best quarter.
    """
    return Search(reward, Every(block), Value(), one_in(one_of))


def rollover(reward: Reward, quota: float, block: int = 5) -> Search:
    """Rollover budget forcing (arXiv 2503.19385), a batch a block: what easy blocks leave unspent, hard ones may spend.

    quota  particles a block on average; n is the most of a single block. See `pick.roll_over` for the rule.
    """
    return Search(reward, Every(block), Value(), roll_over(quota))


def fk(reward: Reward, beta: float, every: int | Every = 5, potential: str = "diff", ess: float = 0.5) -> Search:
    """Feynman-Kac steering (arXiv 2501.06848): resample when the effective sample size falls under `ess` n.

    As n grows the particles follow p(x) exp(beta r(x)) exactly, whatever the intermediate scores. `every=Adaptive(...)`
    looks only as often as the looks have something to say.
    """
    return Search(reward, _block(every), FeynmanKac(potential, beta), when_ess_below(ess, systematic))


def smc(reward: Reward, beta: float, every: int | Every = 5, ess: float = 0.8) -> Search:
    """Tempered sequential Monte Carlo, DAS without its gradient (arXiv 2501.05803): see `Tempered`.

    As n grows the particles follow p(x) exp(beta r(x)) exactly; tempering keeps at least `ess` of them in play at a
    time, and at a strong reward, where `fk` is far from its limit, this one is near. Resampled when the effective
    sample size is under (1 + ess) / 2 of n.
    """
    return Search(reward, _block(every), Tempered(beta, ess), when_ess_below((1 + ess) / 2, systematic))


def _block(every: int | Every) -> Every:
    return every if isinstance(every, Every) else Every(every)
