"""Gather: everything that belongs to a particle moves together, in its prompt, and pruned slots follow a live one."""

from dataclasses import replace

import pytest
import torch
from toys import Gather, first, gaussian, run

from steer.diffusion.control import Controller
from steer.diffusion.controllers.search import Every, Search
from steer.diffusion.loop import first_of, sample
from steer.diffusion.noise import ParticleNoise
from steer.diffusion.schedule import flow
from steer.diffusion.solve import ddim, dpmpp_2m
from steer.diffusion.state import Level, Run, State
from steer.pick import greedy, prune, when_ess_below


def state(groups: int = 2, n: int = 4) -> State:
    """Row r holds r in every tensor."""
    rows = torch.arange(groups * n).float()
    begun = State.begin(rows[:, None].clone(), Level(0.5, 0.5), Run(("",) * groups, n, 10, ParticleNoise(n)))
    return replace(begun, x0=rows[:, None] + 100, history={"h": rows + 200}, memory={"m": rows + 300})


def test_gather_moves_all_together_within_the_prompt():
    moved = state().gather(torch.tensor([[3, 3, 0, 1], [0, 2, 2, 2]]))
    rows = torch.tensor([3, 3, 0, 1, 4, 6, 6, 6]).float()
    assert torch.equal(moved.x[:, 0], rows)
    assert torch.equal(moved.x0[:, 0], rows + 100)
    assert torch.equal(moved.history["h"], rows + 200)
    assert torch.equal(moved.memory["m"], rows + 300)
    assert torch.equal(moved.label.float(), rows)


def test_pruned_slots_follow_a_live_one():
    inf = torch.inf
    moved = state(1).gather(torch.tensor([[2, 1, 1, 3]]), torch.tensor([[0.0, 0, -inf, -inf]]))
    assert moved.alias.tolist() == [
        0,
        1,
        1,
        0,
    ]  # slot 2 has slot 1's ancestor; slot 3's is gone, so slot 0 speaks for it
    assert moved.x[:, 0].tolist() == [2, 1, 1, 2]


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ([[0, 1, 2, 3]], r"\(1, 4\).*\(2, 4\)"),
        ([[0, 1, 2, 4]] * 2, "4"),
        ([[0, 1, 2, -1]] * 2, "-1"),
        ([[0, 1]] * 2, r"\(2, 2\)"),
    ],
)
def test_an_index_that_leaves_its_prompt_is_refused(index, said):
    with pytest.raises(ValueError, match=said):
        state().gather(torch.tensor(index))


def test_first_of_names_one_slot_for_each_label():
    keep, back = first_of(torch.tensor([3, 0, 3, 5, 0]))
    assert keep.tolist() == [1, 0, 3]
    assert back.tolist() == [1, 0, 1, 2, 0]


@pytest.mark.parametrize("at", [1, 3, 7])
def test_gather_takes_the_history_of_the_solver(at):
    """A deterministic run that is permuted midway ends as the permuted plain run, to the bit."""
    order = (2, 0, 3, 1)
    plain = run(gaussian(1.5, 0.3), n=4, solver=dpmpp_2m(), schedule=flow(10))
    moved = run(gaussian(1.5, 0.3), Gather(order, at), n=4, solver=dpmpp_2m(), schedule=flow(10))
    assert torch.equal(moved.x, plain.x[list(order)])


def test_a_gather_without_history_is_wrong():
    """The oracle above sees a gather that leaves the history behind."""

    class Forgets(Gather):
        def look(self, state):
            return replace(super().look(state), history=state.history)

    order = (2, 0, 3, 1)
    plain = run(gaussian(1.5, 0.3), n=4, solver=dpmpp_2m(), schedule=flow(10))
    wrong = run(gaussian(1.5, 0.3), Forgets(order, 3), n=4, solver=dpmpp_2m(), schedule=flow(10))
    assert (wrong.x - plain.x[list(order)]).abs().max() > 1e-3


class Tag(Controller):
    """Writes every slot's number down, so that a later gather shows where it came from."""

    def look(self, state):
        return replace(state, memory={**state.memory, "slot": torch.arange(len(state.x))})


@pytest.mark.parametrize("pick", [greedy, prune(2), when_ess_below(0.2)])
def test_trace_names_the_particle_that_each_slot_really_continues(pick):
    def fails_for_one(x, prompts):
        return torch.where(torch.arange(len(x)) == 2, torch.nan, 0.1 * x[:, 0])

    search = Search(fails_for_one, Every(3), pick=pick)
    generator = torch.Generator().manual_seed(3)
    for seen in sample(gaussian(), (1,), flow(6), [Tag(), search], n=4, generator=generator):
        if seen.trace and seen.trace[-1].i == seen.i:
            assert torch.equal(seen.trace[-1].index.flatten(), seen.memory["slot"])
    assert len(seen.trace) == 2


def test_rows_that_a_controller_made_different_are_all_evaluated():
    """Labels propose that rows are equal; a controller that edited one of them is believed."""

    class Nudge(Controller):
        def look(self, state):
            if state.i != 2:
                return state
            return replace(state, x=state.x + torch.arange(4)[:, None])

    runs = [
        run(gaussian(), [c, Nudge()], n=4, solver=ddim(0), steps=6) for c in (Gather((1,) * 4, 1), Equal((1,) * 4, 1))
    ]
    assert torch.equal(runs[0].x, runs[1].x)


class Equal(Gather):
    """Copies particles over the others without telling the labels."""

    def look(self, state):
        if state.i != self.at:
            return state
        return replace(state, x=state.x[list(self.index)], x0=state.x0[list(self.index)])


def test_common_start_leaves_pruned_slots_pruned():
    inf = torch.inf

    class Prune(Controller):
        def start(self, state):
            return state.gather(torch.zeros(1, 4, dtype=torch.long), torch.tensor([[0.0, 0, -inf, -inf]]))

    states = sample(gaussian(), (1,), flow(6), [Prune(), Search(first, Every(3), common_start=True)], n=4)
    begun = next(states)
    assert begun.logw.tolist() == [0.0, 0.0, -inf, -inf]
    assert begun.alias.tolist() == [0, 1, 0, 0]
