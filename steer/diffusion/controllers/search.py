"""Search over particles: when to look, how a score becomes a log-weight, how log-weights become ancestors.

Every method is one expression over these three choices. All score the network's fresh clean estimate of the *current*
particles, which costs no extra evaluation: N rows a step, where a look-ahead after the move costs N (1 + 1/B).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.control import Controller
from steer.diffusion.state import Look, State
from steer.pick import Pick, greedy, one, systematic, when_ess_below

Reward = Callable[[Any, list[str]], Tensor]


@dataclass(frozen=True)
class Every:
    """Look when a block of so many steps has ended, and at the end; `block=None`: only at the end."""

    block: int | None = None

    def __call__(self, i: int, steps: int) -> bool:
        return i == steps or (self.block is not None and i > 0 and i % self.block == 0)

    def check(self, steps: int) -> None:
        if self.block is not None and not 1 <= self.block <= steps:
            raise ValueError(
                f"block = {self.block} in a run of {steps} steps: expected 1 <= block <= steps; "
                "block = steps is best-of-n from a common start."
            )


@dataclass(frozen=True)
class Value:
    """log G = beta r(x0): each look is judged by itself (CoDe, SVDD)."""

    beta: float = 1.0

    def __call__(self, scores: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        return _times(self.beta, scores), {}


@dataclass(frozen=True)
class FeynmanKac:
    """Potentials of Feynman-Kac steering (arXiv 2501.06848, section 3): what a particle's path has scored so far.

    diff  log G = beta (r_now - r_before)      max  log G = beta max of all r so far      sum  log G = beta sum of all r
    At the end log G = beta r - (sum of all earlier log G), so that the product over the path is exp(beta r(x)) for
    every kind: the target is the exactly tilted posterior p(x) exp(beta r(x)), and the kinds differ only in variance
    (that of `sum` may be infinite beyond a few looks). A look that failed weighs -inf but leaves no mark on the path,
    should the particle be kept because all have failed.
    """

    kind: str
    beta: float

    def __post_init__(self):
        if self.kind not in ("diff", "max", "sum"):
            raise ValueError(f"potential {self.kind!r}: expected 'diff', 'max' or 'sum'.")

    def __call__(self, scores: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        spent = state.grouped(state.memory.get("spent", torch.zeros(scores.numel())))
        running = state.grouped(state.memory.get("running", torch.full((scores.numel(),), -torch.inf)))
        if self.kind == "max":
            now = torch.maximum(running, scores)
        elif self.kind == "sum":
            now = torch.where(torch.isneginf(running), scores, running + scores)
        else:
            now = scores
        failed = torch.isneginf(scores)
        owed = scores if state.finished else torch.where(failed, scores, now)
        log_g = _times(self.beta, owed) - (spent if self.kind == "diff" or state.finished else 0)
        spent = torch.where(failed, spent, spent + log_g)
        return log_g, {"spent": spent.flatten(), "running": torch.where(failed, running, now).flatten()}


@dataclass(frozen=True)
class Search(Controller):
    """Score the particles, weigh them, and let the chosen ones continue.

    reward        (pictures (b, 3, h, w) in [0, 1], prompts) -> (b,), higher is better; NaN and +-inf have failed.
                  With `needs_decode = False` it is given x0 itself, latents (b, ...), and nothing is decoded
    when          which steps to look at
    potential     scores (P, n) -> log-weights (P, n)
    pick          log-weights -> ancestors, from `steer.pick`
    common_start  all particles of a prompt start from particle 0's noise
    """

    reward: Reward
    when: Every = Every(5)
    potential: Callable[[Tensor, State], tuple[Tensor, dict[str, Tensor]]] = Value()
    pick: Pick = greedy
    common_start: bool = False

    @property
    def needs_noise(self) -> bool:  # type: ignore[override]
        return self.when.block is not None or self.common_start

    def start(self, state: State) -> State:
        self.when.check(state.steps)
        if not self.common_start:
            return state
        if state.steps == 1:
            raise ValueError(
                f"{self!r} starts all particles of a prompt from one noise, but a run of 1 step draws no other: "
                "there is nothing to choose from. Use best_of_n, or common_start=False."
            )
        logw = state.grouped(state.logw)
        return state.gather(torch.zeros_like(logw, dtype=torch.long), logw)

    def look(self, state: State) -> State:
        if (state.n == 1 and not state.finished) or not self.when(state.i, state.steps):
            return state
        scores = self._scores(state)
        own = f"{id(self)}."  # two searches of one chain remember apart
        remembered = {name.removeprefix(own): m for name, m in state.memory.items() if name.startswith(own)}
        log_g, memory = self.potential(scores, replace(state, memory=remembered))
        logw = state.grouped(state.logw) + log_g
        index, left = self.pick(logw, state.run.noise.pick_generator(len(state.trace)))
        memory = {**state.memory, **{own + name: m for name, m in memory.items()}}
        moved = replace(state, memory=memory).gather(index, left)
        taken = state.grouped(index.flatten()[moved.alias])  # a pruned slot continues what its speaker continues
        return replace(moved, trace=(*state.trace, Look(state.i, scores, taken)))

    def _scores(self, state: State) -> Tensor:
        """(P, n) float32 scores; -inf for pruned slots, which are not scored, and where the reward is not finite."""
        live = (state.alias == torch.arange(len(state.alias))).nonzero()[:, 0]
        prompts = [state.run.prompts[row // state.n] for row in live.tolist()]
        clean = state.x0[live.to(state.x0.device)]
        seen = state.run.decode(clean) if getattr(self.reward, "needs_decode", True) else clean
        state.run.ledger.reward_calls += len(live)
        found = torch.as_tensor(self.reward(seen, prompts)).detach().float().cpu()
        if found.shape != (len(live),):
            raise ValueError(
                f"{self.reward!r} returned shape {tuple(found.shape)}; expected one score a picture: ({len(live)},)."
            )
        scores = torch.full((len(state.alias),), -torch.inf)
        scores[live] = torch.where(torch.isfinite(found), found, -torch.inf)
        scores = state.grouped(scores)
        if not torch.isfinite(scores).any(-1).all():
            warnings.warn(
                f"step {state.i}: all rewards of a prompt are NaN or infinite; its particle 0 is kept.", stacklevel=2
            )
        return scores


def _times(beta: float, scores: Tensor) -> Tensor:
    """beta r, at any beta; a score that failed stays -inf."""
    return torch.where(torch.isneginf(scores), scores, beta * scores)


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


def fk(reward: Reward, beta: float, every: int = 5, potential: str = "diff", ess: float = 0.5) -> Search:
    """Feynman-Kac steering (arXiv 2501.06848): resample when the effective sample size falls under `ess` n.

    As n grows the particles follow p(x) exp(beta r(x)) exactly, whatever the intermediate scores.
    """
    return Search(reward, Every(every), FeynmanKac(potential, beta), when_ess_below(ess, systematic))
