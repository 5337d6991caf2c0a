"""Search over paths: copies of the best part by being noised again, so that it serves deterministic solvers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from steer.diffusion.control import Controller
from steer.diffusion.controllers.search import Reward, Search, beam
from steer.diffusion.solve import draw_like, renoised, transition
from steer.diffusion.state import State


@dataclass(frozen=True)
class Renoised(Controller):
    """Before a search looks, every particle goes `back` levels up by fresh noise and comes down again without noise.

    Up by `solve.renoised`, down by DDIM with eta = 0. Costs n (back + 1) rows a look. A run of one particle is left
    alone. For solvers without history; raises ValueError unless back >= 1.
    """

    search: Search
    back: int = 1

    def __post_init__(self):
        if self.back < 1:
            raise ValueError(f"back = {self.back}: expected at least one level.")

    def start(self, state: State) -> State:
        return self.search.start(state)

    def look(self, state: State) -> State:
        due = self.search.when(state.i, state.steps) and self.back <= state.i < state.steps
        return self.search.look(self._travelled(state) if due and state.n > 1 else state)

    def _travelled(self, state: State) -> State:
        levels = state.run.schedule[state.i - self.back : state.i + 1]
        top, here = levels[0], levels[-1]
        state = replace(state, x=renoised(state.x, here, top, draw_like(state)), label=state.alias)
        for level, to in zip(levels[:-1], levels[1:], strict=True):
            moved = transition(state.x, state.denoise(state.x, level), level, to, 0.0, None)
            state = replace(state, x=moved)
        return replace(state, x0=state.denoise(state.x, here))


def paths(reward: Reward, beams: int = 2, block: int = 5, back: int = 1) -> Renoised:
    """Search over paths (arXiv 2501.09732): `beams` paths, n / beams copies of each, noised again at every look.

    Every `block` steps all n go `back` steps up in noise and down again, and the `beams` best go on. Under a
    deterministic solver the copies of a path are evaluated once in between: beams rows a step, n (back + 1)
    more at a look.
    """
    return Renoised(beam(reward, beams, block), back)
