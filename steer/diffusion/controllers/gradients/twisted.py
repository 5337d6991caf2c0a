"""Twisted sequential Monte Carlo: particles that move along the gradient, and weights that pay for it exactly."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steer.diffusion.controllers.gradients.rules import Drift, Rule, pull
from steer.diffusion.controllers.gradients.value import Reward, check_reward, through_network
from steer.diffusion.controllers.potential import FeynmanKac, Tempered
from steer.diffusion.controllers.search import Search
from steer.diffusion.controllers.when import Every, live
from steer.diffusion.solve import noise_scale, transition
from steer.diffusion.state import State
from steer.pick import systematic, when_ess_below


@dataclass(frozen=True)
class Proposed:
    """A potential times p(x' | x) / q(x' | x), transition over proposal, for all steps since the last look."""

    inner: FeynmanKac | Tempered

    def __call__(self, scores: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        owed = state.grouped(state.memory["owed"])
        log_g, memory = self.inner(scores, replace(state, logw=state.logw + owed.flatten()))
        if "log_z" in memory:  # of weights that count what is owed already: its mean belongs to Z too
            before = torch.log_softmax(state.grouped(state.logw), -1)
            mean = torch.logsumexp(before + owed, -1, keepdim=True).expand_as(owed)
            memory = {**memory, "log_z": memory["log_z"] + mean.flatten()}
        return log_g + owed, {**memory, "owed": torch.zeros_like(state.memory["owed"])}


@dataclass(frozen=True)
class Twisted(Search):
    """A search whose particles move by q(x' | x) = N(mean + c edit, s^2), edit = rule(grad_x beta r(x0(x))).

    Its weights carry p / q besides the potential (see `Proposed`), so the target stays the tilted posterior
    p(x) exp(beta r(x)), exactly, for every rule, and the estimate of Z (`log_z`) is unbiased. The last step, which has
    no noise, and alpha = 0 are left as they are. One backward row for each row. Raises ValueError for a reward without
    gradient, and for a solver that is not a first-order transition with noise, or clips x0.
    """

    potential: Proposed = field(default_factory=lambda: Proposed(FeynmanKac("diff", 1.0)))
    rule: Rule = field(default_factory=lambda: Drift(0.5))

    @property
    def evaluates(self) -> bool:  # type: ignore[override]
        return True

    @property
    def needs_noise(self) -> bool:  # type: ignore[override]
        return True

    def start(self, state: State) -> State:
        check_reward(self.reward, self)
        return super().start(state)

    @torch.no_grad()
    def look(self, state: State) -> State:
        state = self._keep(state, owed=self._owed(state))
        if state.finished:
            return super().look(state)
        if self._scale(state, state.i) == 0 or state.level.alpha == 0:
            return super().look(state.evaluated())
        slope = through_network(state, self.reward)
        state, scores = replace(state, x0=slope.x0), slope.value.float().cpu()
        scores = torch.where(torch.isfinite(scores) & live(state).flatten(), scores, -torch.inf)
        return self._proposed(super().look(self._keep(state, twist=scores, uphill=slope.by_x)))

    def scores(self, state: State) -> Tensor:
        """(P, n) scores; those that came with the gradient where there was one."""
        twist = self.recalled(state).get("twist")
        known = twist is not None and not state.finished and self._scale(state, state.i) > 0
        return state.grouped(twist) if known else super().scores(state)

    def _proposed(self, state: State) -> State:
        memory, beta = self.recalled(state), self.potential.inner.beta
        if "lambda" in memory:  # as much of the reward as the target has let in
            beta = beta * memory["lambda"]
        beta = torch.as_tensor(beta, device=state.x.device).expand(len(state.x))
        rows = beta.reshape(-1, *[1] * (state.x.ndim - 1))
        edit = self.rule(rows * memory["uphill"], beta * memory["twist"].to(beta.device), state)
        x0 = state.x0 + edit.to(state.x0.dtype)
        scale = self._scale(state, state.i)
        mean = transition(state.x, x0, state.level, state.to, scale, None)
        return self._keep(replace(state, x0=x0), mean=mean, shift=pull(state) * edit)

    def _owed(self, state: State) -> Tensor:
        """(P n,) log p / q of the moves since the last look: -(2 (x - mean) shift + shift^2) / (2 s^2) for each."""
        memory = self.recalled(state)
        owed = memory.get("owed", torch.zeros(len(state.x)))
        if "shift" not in memory or (scale := self._scale(state, state.i - 1)) == 0:
            return owed
        shift = memory["shift"].double()
        ratio = -(2 * (state.x.double() - memory["mean"].double()) + shift) * shift / (2 * scale**2)
        return owed + ratio.flatten(1).sum(1).float().cpu()

    def _scale(self, state: State, i: int) -> float:
        """The deviation of the noise in transition number i."""
        if state.run.eta is None:
            pull(state)  # says what is wrong
        return noise_scale(state.run.schedule[i], state.run.schedule[i + 1], state.run.eta)

    def _keep(self, state: State, **values: Tensor) -> State:
        return replace(state, memory={**state.memory, **{self._own + name: kept for name, kept in values.items()}})


def twisted(
    reward: Reward, beta: float = 1.0, every: int = 1, ess: float = 0.5, strength: float = 0.5, tempered: bool = False
) -> Twisted:
    """Twisted diffusion sampler (TDS, arXiv 2306.17775): Feynman-Kac steering with proposals along the gradient.

    As n grows the particles follow p(x) exp(beta r(x)) exactly. `strength` scales the proposal, 1 in the paper, and not
    the target: taken at one point, the gradient of f overshoots while x is noisy, which the weights must take back. On
    a Gaussian with a quadratic reward, n = 64, the standard error of the mean is 0.007 at strength 0.5, 0.012 at 1, and
    0.013 without gradient; that of Z is 0.0005, 0.001 and 0.0024.
    `tempered=True` lets the reward in little by little, as in DAS (arXiv 2501.05803).
    """
    potential = Tempered(beta, ess) if tempered else FeynmanKac("diff", beta)
    pick = when_ess_below(1.0 if tempered else ess, systematic)
    return Twisted(reward, Every(every), Proposed(potential), pick, rule=Drift(strength))
