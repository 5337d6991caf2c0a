"""Tempering: the reward is let in as fast as the particles can follow, and the end is the tilted posterior."""

from dataclasses import dataclass, field

import pytest
import torch
from toys import estimate, evidence, first, gaussian, moments, quadratic, run, tilted, weighted

from steer.diffusion.controllers import Adaptive, Every, FeynmanKac, Search, Tempered, best_of_n, fk, smc
from steer.diffusion.loop import finished, sample
from steer.diffusion.schedule import vp
from steer.pick import ess, systematic

N, STEPS = 16, 30


@dataclass(frozen=True)
class Watched(Tempered):
    """Notes, at every look, lambda before and after and the effective sample size that each leaves."""

    notes: list = field(default_factory=list, compare=False)

    def __call__(self, scores, state):
        def size(value):
            spent = state.grouped(state.memory.get("spent", torch.zeros(scores.numel())))
            return ess(state.grouped(state.logw) - spent + self.beta * value * scores)

        before = state.grouped(state.memory.get("lambda", torch.zeros(scores.numel())))[:, :1]
        log_g, memory = super().__call__(scores, state)
        after = state.grouped(memory["lambda"])[:, :1]
        self.notes.append((before[:, 0], after[:, 0], size(before), size(after), size(torch.ones_like(after))))
        return log_g, memory


def watched(beta: float, share: float, groups: int = 20) -> list:
    potential = Watched(beta, share)
    run(gaussian(), Search(quadratic, Every(2), potential, systematic), n=N, groups=groups, steps=STEPS)
    return potential.notes


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_lambda_grows_as_far_as_the_sample_size_allows(share):
    notes = watched(6.0, share)
    stopped = 0
    for before, after, size_before, size_after, size_one in notes[:-1]:
        can = size_before >= share * N
        assert (after >= before).all()
        assert (size_after[can] >= share * N * (1 - 1e-4)).all()
        assert (after[~can & (size_one < share * N)] == before[~can & (size_one < share * N)]).all()
        assert (after[size_one >= share * N] == 1).all()
        held = can & (size_one < share * N)
        assert torch.allclose(size_after[held], torch.tensor(share * N), rtol=1e-2)  # and no further
        stopped += int(held.sum())
    assert stopped > 20
    assert (notes[-1][1] == 1).all()


def test_a_mild_reward_needs_no_tempering():
    """Then it is Feynman-Kac steering with the potential `diff`."""
    assert all((after == 1).all() for _, after, *_ in watched(1e-3, 0.5))
    mild = [
        run(gaussian(), Search(first, Every(2), p, systematic), n=N, groups=3, steps=8)
        for p in (Tempered(1e-3), FeynmanKac("diff", 1e-3))
    ]
    assert torch.equal(mild[0].x, mild[1].x)


def test_a_strong_reward_needs_tempering():
    """At beta = 8 the posterior is N(1.83, 0.08). Runs are pooled by their evidence, which is unbiased at every n."""
    left = moments(gaussian(dtype=torch.float64), vp(40))[1]
    (mean, _), exact = tilted(left, 8.0), evidence(left, 8.0)
    found = {}
    for make in (smc, fk):
        search = make(quadratic, 8.0, 2)
        state = run(gaussian(), search, n=256, groups=100, steps=40)
        z, own = search.log_z(state).exp(), weighted(state, state.x[:, 0])
        apart = z * (own - mean) / z.mean()
        found[make] = estimate(z), estimate(apart), float(own.mean()) - mean
    (z, z_error), (shift, error), bias = found[smc]
    assert abs(z - exact) <= 3 * z_error < 0.1 * exact
    assert abs(shift) <= 3 * error < 0.02
    assert abs(bias) < 0.02 < 0.08 < found[fk][2]
    assert found[fk][0][0] < 0.3 * exact  # its weights hang on particles that it has not found


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("make", [smc, fk])
def test_the_evidence_is_unbiased_for_every_n(make, n):
    """Also where the schedule of lambda and the resampling follow the particles themselves."""
    left = moments(gaussian(dtype=torch.float64), vp(20))[1]
    search = make(quadratic, 1.0, 2)
    z, error = estimate(search.log_z(run(gaussian(), search, n=n, groups=4000, steps=20)).exp())
    assert abs(z - evidence(left)) <= 3 * error < 0.1 * evidence(left)


def test_failed_particles_count_for_nothing():
    """Half of them always fail: the other half is tempered and weighed as if alone."""

    class Half:
        def __call__(self, x, prompts):
            return torch.where(torch.arange(len(x)) % 2 == 1, torch.nan, quadratic(x))

    state = run(gaussian(), smc(Half(), 1.0, 2), n=8, steps=10)
    assert torch.isfinite(weighted(state, torch.ones(8))).all()
    assert all((look.index % 2 == 0).all() for look in state.trace[:-1])


@pytest.mark.parametrize("share", [0.0, 1.1, -1.0])
def test_a_share_is_a_fraction(share):
    with pytest.raises(ValueError, match=f"ess = {share}"):
        smc(first, 1.0, ess=share)


def test_only_potentials_of_paths_know_the_evidence():
    search = best_of_n(first)
    with pytest.raises(ValueError, match=r"Value\(beta=1.0\) estimates no log Z; use FeynmanKac or Tempered"):
        search.log_z(run(gaussian(), search, n=2, steps=4))


def test_one_prompt_that_tells_keeps_all_awake():
    """Adaptive looks are common to the prompts of a call."""

    def tells(x, prompts):
        return torch.tensor([100.0 if prompt == "loud" else 0.0 for prompt in prompts]) * x[:, 0]

    search = Search(tells, Adaptive(1, 8), FeynmanKac("diff", 1.0), systematic)
    for prompts, steps in ((["still", "loud"], list(range(1, 9))), (["still", "still"], [1, 3, 7, 8])):
        state = finished(sample(gaussian(), (1,), vp(8), search, n=4, prompts=prompts, generator=torch.Generator()))
        assert [look.i for look in state.trace] == steps
