"""Look before you move: a search that scores what the network said before the last noise does nothing at block 1."""

from dataclasses import dataclass, replace

import pytest
from toys import estimate, gaussian, quadratic, run, winners

from steer.diffusion.controllers.search import Every, Search
from steer.diffusion.state import State


@dataclass(frozen=True)
class Stale(Search):
    """The order of a search after the move: scores the x0 from which the current particles were drawn."""

    def look(self, state: State) -> State:
        before = state.memory.get("x0", state.x0)
        searched = super().look(replace(state, x0=before, memory={**state.memory, "x0": state.x0}))
        return replace(searched, x0=searched.memory["x0"])


def end(search: type[Search], block: int, seed: int) -> tuple[float, float]:
    """Mean and standard error of the winners for N(0, 1) and a reward with its peak at 2."""
    controller = search(quadratic, Every(block), common_start=True)
    return estimate(winners(run(gaussian(), controller, n=4, groups=200, seed=seed))[:, 0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_block_one_reaches_the_mode(seed):
    mean, error = end(Search, 1, seed)
    assert abs(mean - 2) < 0.005 + 3 * error


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_block_one_of_the_stale_order_is_the_prior(seed):
    """Siblings share the stale score: the law above sees it, and longer blocks would hide it."""
    mean, error = end(Stale, 1, seed)
    assert abs(mean) < 3 * error
    assert abs(end(Stale, 6, seed)[0] - 2) < 0.02
