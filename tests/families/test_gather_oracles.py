"""A gather takes the solver's history with it: compared with runs that need no gather."""

from dataclasses import replace

import pytest
import torch
from solver_cases import CASES, DETERMINISTIC, NOISY, Gather, PermuteNoise, brightness, close
from tiny import Watch

from steer.diffusion.control import Controller
from steer.diffusion.controllers import best_of_n
from steer.diffusion.pipelines import Steered, history


@DETERMINISTIC
@pytest.mark.parametrize("step", [1, 3])
def test_copies_of_a_particle_become_that_particle(case, step):
    free, _ = case.attached(exact=True)
    copied, _ = case.attached([Gather((2, 2, 2, 2), step)], exact=True)
    assert torch.equal(copied, free[2].expand_as(free))


@NOISY
def test_a_permutation_of_particles_is_a_permutation_of_noise(case):
    order = (2, 0, 3, 1)
    back = tuple(order.index(k) for k in range(4))
    moved, _ = case.attached([Gather(order)], exact=True)
    renoised, _ = case.attached([PermuteNoise(back)], exact=True)
    assert torch.equal(moved, renoised[list(order)])


@pytest.mark.parametrize("name", ["dpm2m", "unipc", "pndm", "deis", "lms", "dpm2m-sde"])
def test_without_its_history_the_gather_oracle_fails(name, monkeypatch):
    """Guards the tests above: they notice a history that stays behind."""
    case = CASES[name]
    right, _ = case.attached([Gather((2, 0, 3, 1))], exact=True)
    monkeypatch.setattr(history, "write", lambda scheduler, rows: None)
    wrong, _ = case.attached([Gather((2, 0, 3, 1))], exact=True)
    assert not torch.equal(wrong, right)


class Halve(Controller):
    """Halves the clean estimate, in the network or in the look."""

    def __init__(self, place):
        self.place = place

    def wrap(self, denoiser):
        if self.place == "look":
            return denoiser
        return lambda x, level, cond: 0.5 * denoiser(x, level, cond)

    def look(self, state):
        return replace(state, x0=0.5 * state.x0) if self.place == "look" and not state.finished else state


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm2m", "unipc", "deis", "lms", "ddpm"])
def test_an_edited_x0_reaches_the_solver(name):
    case = CASES[name]
    looked, wrapped = (case.attached([Halve(place)], n=1)[0] for place in ("look", "wrap"))
    assert close(looked, wrapped, 1e-3)
    assert not close(looked, case.run(case.pipe()), 1e-2)


@pytest.mark.parametrize(
    ("name", "calls", "steps"),
    [("heun", 11, 6), ("pndm", 7, 6), ("pndm-prk", 16, 7), ("dpm-single", 6, 4), ("ddim", 6, 6)],
)
def test_one_look_for_each_noise_level(name, calls, steps):
    watch, case = Watch(), CASES[name]
    _, session = case.attached([watch], n=1)
    assert len(session.scheduler.timesteps) == calls
    assert [state.i for state in watch.states] == list(range(steps + 1))
    assert {state.steps for state in watch.states} == {steps}
    assert [state.level.progress for state in watch.states] == [i / steps for i in range(steps + 1)]
    assert watch.states[-1].finished


def test_a_callback_that_edits_one_copy_is_noticed():
    """After a gather in a deterministic solver copies are evaluated once, unless somebody has edited one of them."""
    case = CASES["ddim"]

    def edit(pipe, i, t, given):
        if i == 4:
            given["latents"] = given["latents"].clone()
            given["latents"][1] *= 0.5
        return given

    _, shared = case.attached([Gather((2, 2, 2, 2), 2)], exact=True)
    assert shared.ledger.rows == 2 * (3 * 4 + 3)
    edited, session = case.attached([Gather((2, 2, 2, 2), 2)], exact=True, callback_on_step_end=edit)
    alone, _ = case.attached(exact=True, callback_on_step_end=lambda *a: {"latents": _of_two(a, 4)})
    assert session.ledger.rows == 2 * (3 * 4 + 2 + 4)
    assert torch.equal(edited[0], edited[2])
    assert torch.equal(edited[1], alone[2])


def _of_two(arguments, step):
    _, i, _, given = arguments
    latents = given["latents"].clone()
    latents[2] *= 0.5 if i == step else 1.0
    return latents


def test_a_callback_after_the_last_step_edits_the_winner():
    case = CASES["ddim"]

    def clear(pipe, i, t, given):
        return {"latents": given["latents"] * (i < 5)}

    out = Steered(case.pipe(), best_of_n(brightness))(
        "a cat", n=3, num_inference_steps=6, output_type="latent", callback_on_step_end=clear
    )
    assert torch.equal(out.images, torch.zeros_like(out.images))
