"""The ledger is exact: rows are evaluated once for equal particles, and no more often is claimed."""

import pytest
import torch
from toys import Gather, first, gaussian, rows, run

from steer.diffusion.controllers.search import Every, Search, best_of_n, code, fk, svdd
from steer.diffusion.solve import ddim, heun
from steer.pick import prune

N, T, P = 4, 12, 3


def test_plain_and_best_of_n():
    assert rows(n=1) == T
    assert rows(best_of_n(first)) == N * T


@pytest.mark.parametrize("block", [1, 3, 5, T])
def test_code_costs_no_more_than_best_of_n(block):
    assert rows(code(first, block)) == N * (T - 1) + 1
    assert rows(code(first, block, common_start=False)) == N * T


def test_svdd_and_fk():
    assert rows(svdd(first, 2.0)) == N * (T - 1) + 1
    assert rows(fk(first, 1.0)) == N * T


def test_a_given_start_is_one_row():
    assert rows(x=torch.zeros(P, 1)) == N * (T - 1) + 1


def test_pruned_slots_cost_nothing():
    """4 particles until step 6, then 2: the look at step 6 comes after that step's evaluation."""
    assert rows(Search(first, Every(6), pick=prune(2))) == 4 * 7 + 2 * (T - 7)
    assert rows(Search(first, Every(6), pick=prune(2), common_start=True)) == 1 + 4 * 6 + 2 * (T - 7)


def test_a_funnel_narrows_step_by_step():
    funnel = [
        Gather((3, 0, 1, 2), 2, (0.0, 0.0, 0.0, -torch.inf)),
        Gather((1, 2, 0, 0), 5, (0.0, -torch.inf) + (-torch.inf,) * 2),
    ]
    assert rows(funnel) == 4 * 3 + 3 * 3 + 1 * (T - 6)


def test_copies_are_free_in_a_deterministic_stretch():
    assert rows(Gather((2, 2, 1, 2), 3), solver=ddim(0)) == 4 * 4 + 2 * (T - 4)
    assert rows(solver=heun(), groups=1) == N * (T + T - 2)  # first and last step are Euler's
    assert rows(Gather((2, 2, 2, 2), 3), solver=heun(), groups=1) == 4 * (1 + 2 + 2 + 1) + 1 + 2 * (T - 5) + 1


def test_copies_are_not_free_under_fresh_noise():
    assert rows(Gather((2, 2, 2, 2), 3), solver=ddim(0.5)) == N * T


def test_rows_add_up_and_show_in_a_table():
    ledger = run(gaussian(), code(first, 4), n=N, steps=T).run.ledger
    assert ledger.row() == {
        "rows": N * (T - 1) + 1,
        "backward_rows": 0,
        "decodes": 0,
        "reward_calls": N * 3,
        "seconds": ledger.seconds,
    }
