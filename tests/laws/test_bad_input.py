"""What cannot work is refused with what came, what was expected, and the cure."""

import pytest
import torch
from toys import first, gaussian, run

from steer.diffusion.control import Chain, Controller, as_chain, chain, during
from steer.diffusion.controllers.search import Every, FeynmanKac, Search, best_of_n, code, fk, svdd
from steer.diffusion.loop import sample
from steer.diffusion.noise import ParticleNoise
from steer.diffusion.schedule import flow, karras, vp
from steer.diffusion.solve import ddim, dpmpp_2m, heun


@pytest.mark.parametrize("prompts", [[], (), "a red apple"])
def test_prompts_are_a_list_of_some(prompts):
    with pytest.raises(ValueError, match="non-empty list"):
        next(sample(gaussian(), (1,), vp(4), prompts=prompts))


@pytest.mark.parametrize("n", [0, -1])
def test_a_run_needs_a_particle(n):
    with pytest.raises(ValueError, match=f"n = {n}"):
        run(gaussian(), n=n)
    with pytest.raises(ValueError, match=f"n = {n}"):
        ParticleNoise(n)


@pytest.mark.parametrize("block", [0, -1, 9])
def test_blocks_fit_the_run(block):
    with pytest.raises(ValueError, match=f"block = {block} in a run of 8 steps"):
        run(gaussian(), code(first, block), n=2, steps=8)


@pytest.mark.parametrize("solver", [ddim(0), heun(), dpmpp_2m()])
@pytest.mark.parametrize(
    "search", [code(first, 2), svdd(first), fk(first, 1.0, 2), during(code(first, 2)), chain(code(first, 2))]
)
def test_a_search_between_steps_needs_noise(solver, search):
    with pytest.raises(ValueError, match=r"draws no noise.*best_of_n"):
        run(gaussian(), search, n=4, steps=8, solver=solver)


def test_best_of_n_needs_none():
    state = run(gaussian(), best_of_n(first), n=4, steps=8, solver=ddim(0))
    assert len(state.x.unique()) == 1


@pytest.mark.parametrize("returned", [torch.zeros(4, 1), torch.tensor(0.0), torch.zeros(3)])
def test_a_reward_is_one_score_a_picture(returned):
    with pytest.raises(ValueError, match=r"expected one score a picture: \(4,\)"):
        run(gaussian(), best_of_n(lambda x, prompts: returned), n=4, steps=4)


def test_rewards_may_be_lists_integers_or_carry_gradients():
    scores = [
        [0, 3, 1, 2],
        torch.tensor([0, 3, 1, 2]),
        torch.tensor([0.0, 3, 1, 2], dtype=torch.float64, requires_grad=True),
    ]
    ends = [run(gaussian(), best_of_n(lambda x, prompts, s=s: s), n=4, steps=4) for s in scores]
    for end in ends:
        assert end.trace[-1].scores.dtype == torch.float32
        assert end.trace[-1].index.tolist() == [[1] * 4]


@pytest.mark.parametrize("wrong", [first, "code", None, Search])
def test_a_chain_is_made_of_controllers(wrong):
    for make in (chain, as_chain, lambda c: as_chain([c]), lambda c: chain(Controller(), c)):
        with pytest.raises(ValueError, match="expected Controller objects"):
            make(wrong)


def test_chains_flatten():
    a, b, c = (code(first, k) for k in (1, 2, 3))
    assert chain(chain(a, b), c) == as_chain([a, chain(b, c)]) == Chain((a, b, c))
    assert as_chain(a) == Chain((a,))
    assert as_chain(()) == Chain(())


@pytest.mark.parametrize(
    "limits", [{"start": -0.1}, {"stop": 1.1}, {"start": 0.5, "stop": 0.5}, {"start": 0.6, "stop": 0.4}, {"every": 0}]
)
def test_during_has_limits(limits):
    with pytest.raises(ValueError, match="0 <= start < stop <= 1"):
        during(Controller(), **limits)


def test_during_looks_and_wraps_only_there_and_at_the_end():
    looks, wraps = [], []

    class Spy(Controller):
        def look(self, state):
            looks.append(state.i)
            return state

        def wrap(self, denoiser):
            def wrapped(x, level, cond):
                wraps.append(round(10 * level.progress))
                return denoiser(x, level, cond)

            return wrapped

    run(gaussian(), during(Spy(), 0.3, 0.8, every=2), steps=10)
    assert looks == [4, 6, 10]
    assert wraps == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("schedule", [vp, flow, karras])
@pytest.mark.parametrize("steps", [0, -3])
def test_schedules_have_a_step(schedule, steps):
    with pytest.raises(ValueError, match=f"a schedule of {steps} steps"):
        schedule(steps)


def test_a_schedule_is_two_levels_or_more():
    with pytest.raises(ValueError, match="at least two"):
        next(sample(gaussian(), (1,), vp(4)[:1]))


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_is_between_deterministic_and_ancestral(eta):
    with pytest.raises(ValueError, match=f"eta = {eta}"):
        ddim(eta)


def test_potentials_have_names():
    with pytest.raises(ValueError, match=r"'add'.*'diff'"):
        FeynmanKac("add", 1.0)


def test_a_given_start_is_one_particle_a_prompt():
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(2, 1\)"):
        run(gaussian(), n=2, groups=2, x=torch.zeros(4, 1))


def test_a_search_with_its_own_steps_may_be_any_function_with_a_check():
    assert run(gaussian(), Search(first, Every(4)), n=2, steps=8).trace[0].i == 4
