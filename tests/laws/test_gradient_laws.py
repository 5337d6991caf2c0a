"""Gradients: exact, counted, taken of living particles only, and refused or left out where there are none."""

from dataclasses import dataclass, replace

import pytest
import torch
from methods.gradient_toys import SCHEDULES, affine, counted, peaked, prior, states
from tiny import Watch
from toys import estimate, gaussian, quadratic, run, three_modes, tilted

from steer import Controller, gradients, rewards
from steer.diffusion.controllers.gradients.noise import NoiseOptimisation
from steer.diffusion.controllers.gradients.rules import Score, Step
from steer.diffusion.controllers.gradients.value import Smoothing, through_network
from steer.diffusion.controllers.search import Every, Search
from steer.diffusion.loop import finished, sample
from steer.diffusion.schedule import vp
from steer.diffusion.solve import ddim, heun
from steer.pick import prune

METHODS = {
    "dps": gradients.dps,
    "mpgd": lambda reward: gradients.mpgd(reward, 0.1),
    "twisted": gradients.twisted,
    "reno": gradients.reno,
}
EACH = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


@pytest.mark.parametrize("smoothing", [Smoothing(), Smoothing(3, 0.5)], ids=["plain", "smoothed"])
def test_the_gradient_agrees_with_finite_differences(smoothing):
    mixture = type(three_modes())(*(v.double() for v in vars(three_modes()).values()))
    watch, g = Watch(), torch.Generator().manual_seed(0)
    x = torch.randn(4, 2, dtype=torch.float64, generator=g)
    finished(sample(mixture, (2,), vp(6), watch, x=x, prompts=[""] * 4, generator=g))
    state, small = watch.states[3], 1e-5
    offsets = None if smoothing.gamma == 0 else 0.5 * torch.randn(3, 4, 2, dtype=torch.float64, generator=g)
    slope = through_network(state, peaked, 0.3, offsets)
    for axis in torch.eye(2, dtype=torch.float64):
        up, down = (
            through_network(replace(state, x=state.x + step * axis), peaked, 0.3, offsets).value
            for step in (small, -small)
        )
        assert torch.allclose((up - down) / (2 * small), slope.by_x @ axis, rtol=1e-6, atol=1e-8)


def test_the_bias_of_dps_is_there_and_smoothing_takes_it_away():
    """N(0, 1) tilted by -0.75 (x - 2)^2 has mean 1.2. Taking f at the one point x0(x) overshoots: 1.57 at 50 steps."""
    exact, steps = tilted()[0], 50
    biased = estimate(run(gaussian(), gradients.lgd(quadratic, samples=1, gamma=0.0), groups=4000, steps=steps).x)
    smooth = estimate(run(gaussian(), gradients.lgd(quadratic, samples=64), groups=4000, steps=steps).x)
    assert biased[0] - 20 * biased[1] > exact
    assert biased[0] == pytest.approx(1.5656, abs=3 * biased[1])  # the affine recursion of its own update
    assert abs(smooth[0] - exact) < 0.1 * (biased[0] - exact)


def test_time_travel_returns_to_the_same_level():
    """A move, x' = c x + k z over N(0, 1), then noise back to the level: the variance of both is known."""
    guide = gradients.Gradient(lambda x, prompts: 0.0 * x.sum(1), direct=Step(1e-30), repeats=5)
    for schedule in SCHEDULES:
        variance = schedule[0].sigma ** 2
        for state in states(guide, schedule, particles=4000)[:-1]:
            level, to, (c, k) = state.level, state.to, affine(state.level, state.to)
            ratio = level.alpha / to.alpha
            for _ in range(4):
                variance = ratio**2 * (c**2 * variance + k**2) + level.sigma**2 - (ratio * to.sigma) ** 2
            assert float(state.x.std()) == pytest.approx(variance**0.5, rel=0.03)
            variance = c**2 * variance + k**2


@EACH
def test_a_reward_without_gradient_is_refused_before_the_run(make):
    with pytest.raises(ValueError, match="differentiable"):
        counted(make(rewards.Compressibility()))
    with pytest.raises(ValueError, match="compares pictures"):
        counted(make(rewards.Sharpness().zscored()))


@EACH
def test_a_function_that_cuts_the_graph_is_refused_at_its_first_look(make):
    with pytest.raises(ValueError, match="cuts the graph"):
        counted(make(lambda x, prompts: peaked(x.detach())))


@EACH
def test_scores_of_a_wrong_shape_are_refused(make):
    with pytest.raises(ValueError, match="one score a picture"):
        counted(make(lambda x, prompts: x))


def test_a_gradient_that_is_not_finite_is_left_out_with_a_warning():
    """Particle 1, whose score or only its slope is NaN, moves on as if unguided; the others do not notice."""

    def steep(x, prompts):
        return peaked(x) + 0 * (x[:, 0] * torch.tensor([1.0, 0.0, 1.0])).abs().sqrt()  # infinite slope at 0

    def nan(x, prompts):
        return peaked(x) * torch.tensor([1.0, torch.nan, 1.0])

    plain, guided = counted((), groups=1), counted(gradients.lgd(peaked, samples=1, gamma=0.0), groups=1)
    for reward in (steep, nan):
        with pytest.warns(UserWarning, match="for 1 of 3 particles"):
            state = counted(gradients.lgd(reward, samples=1, gamma=0.0), groups=1)
        assert torch.equal(state.x[1], plain.x[1])
        assert torch.allclose(state.x[[0, 2]], guided.x[[0, 2]])
    with pytest.warns(UserWarning, match="for 1 of 3 particles"):
        twice = counted(gradients.reno(nan, iterations=2), groups=1, schedule=vp(9)[1:])
    assert torch.isfinite(twice.x).all()


def test_pruned_slots_are_not_guided_and_follow_their_speaker():
    """4 particles until step 4, then 2; what is pruned costs no row, no backward row and no reward call."""
    keep = Search(peaked, Every(4), pick=prune(2))
    state = counted([gradients.lgd(peaked, samples=2), keep], n=4)
    ledger = state.run.ledger
    assert ledger.rows == 2 * (4 * 5 + 2 * 3)
    assert ledger.backward_rows == 2 * (4 * 4 + 2 * 3)
    assert ledger.reward_calls == 2 * (2 * (4 * 4 + 2 * 3) + 4 + 2)
    x = state.grouped(state.x)
    assert torch.equal(x[:, 2], x[:, 0])


def test_a_search_before_the_gradient_hands_over_living_particles():
    """After a gather in the same look equal particles are alive: each gets its whole gradient."""

    @dataclass(frozen=True)
    class Copy(Controller):
        def look(self, state):
            return state.gather(torch.zeros(2, 3, dtype=torch.long)) if state.i == 4 else state

    watch = Watch()
    counted([Copy(), gradients.lgd(peaked, samples=1, gamma=0.0), watch])
    alone = watch.states[4]
    assert torch.equal(alone.x0[:3], alone.x0[:1].expand(3, -1))
    edit = alone.x0 - prior(torch.float32)(alone.x, alone.level)
    variance = alone.level.sigma**2 / (alone.level.alpha**2 + alone.level.sigma**2)
    assert torch.allclose(edit, variance * -1.5 * (alone.x0 - edit - torch.tensor([2.0, -1.0])), atol=1e-5)


def test_checkpointing_changes_nothing_but_the_bill():
    def climb(checkpointed):
        sgd = gradients.reno(peaked).optimiser
        noise = NoiseOptimisation(peaked, 4, sgd, steps=3, clip=0.1, checkpointed=checkpointed)
        return counted(noise, schedule=vp(9)[1:], solver=ddim(0.0))

    kept, again = climb(False), climb(True)
    assert torch.equal(kept.x, again.x)
    assert kept.run.ledger.backward_rows == again.run.ledger.backward_rows == 6 * 4 * 3
    assert again.run.ledger.rows - kept.run.ledger.rows == 6 * 4 * 3


def test_the_noise_is_improved_for_every_particle_and_enough_ends_it():
    schedule = vp(9)[1:]
    plain = counted((), schedule=schedule, solver=ddim(0.0))
    better = counted(gradients.dno(peaked, 5, lr=0.1, weight=0.0), schedule=schedule, solver=ddim(0.0))
    assert (peaked(better.x) > peaked(plain.x)).all()
    stopped = counted(gradients.initno(peaked, 50, enough=-1e9), schedule=schedule)
    assert stopped.run.ledger.reward_calls == 6


def test_an_edit_at_the_last_look_reaches_the_sample():
    @dataclass(frozen=True)
    class Last(Controller):
        what: str

        def look(self, state):
            return replace(state, **{self.what: 0 * state.x + 7}) if state.finished else state

    for what in ("x", "x0"):
        state = counted(Last(what))
        assert torch.equal(state.x, torch.full_like(state.x, 7))
        assert torch.equal(state.x0, state.x)
        assert state.history == {}


def test_coupled_rows_are_never_shared():
    @dataclass(frozen=True)
    class Coupled(Controller):
        couples_rows: bool = True

    x = torch.zeros(2, 2)
    assert counted((), x=x).run.ledger.rows == 2 * (1 + 3 * 7)
    assert counted(Coupled(), x=x).run.ledger.rows == counted(Coupled(False), x=x).run.ledger.rows + 2 * 2


def test_the_network_cannot_be_asked_at_the_end():
    state = counted(())
    with pytest.raises(ValueError, match="no network to ask"):
        state.denoise(state.x, state.level)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lambda: gradients.dps(peaked), {"solver": heun()}, "first-order"),
        (lambda: gradients.twisted(peaked), {"solver": ddim(0.0)}, "draws no noise"),
        (lambda: gradients.dps(lambda x, p: x[:, 0].abs()), {}, "minus a squared distance"),
        (lambda: gradients.dno(peaked, steps=9), {}, "steps = 9"),
        (lambda: gradients.dno(peaked, iterations=1), {"schedule": vp(9)[1:]}, "a block of 4"),
        (lambda: gradients.dno(peaked, iterations=-1), {}, "iterations = -1"),
        (lambda: gradients.dps(peaked, float("nan")), {}, "finite strength"),
        (lambda: gradients.Gradient(peaked, repeats=0), {}, "repeats = 0"),
        (lambda: gradients.Gradient(peaked, direct=Score(1.0)), {}, "use Step or Unit"),
        (lambda: gradients.freedom(peaked, travel=(0.5, 0.2)), {}, "travel"),
        (lambda: gradients.Smoothing(3), {}, "samples >= 1"),
    ],
)
def test_what_cannot_work_is_refused(make, options, said):
    with pytest.raises(ValueError, match=said):
        counted(make(), **options)
