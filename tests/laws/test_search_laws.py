"""Search: scores that fail, potentials along a path, the ledger, and chains of searches."""

import time
import warnings
from dataclasses import dataclass, field

import pytest
import torch
from toys import first, gaussian, quadratic, run, weighted, winners

from steer.diffusion.controllers.search import Every, FeynmanKac, Search, Value, best_of_n, code, fk, svdd
from steer.diffusion.loop import sample
from steer.diffusion.schedule import flow, vp
from steer.pick import multinomial, one, prune, when_ess_below


@dataclass
class Sometimes:
    """`first`, but the rows `which` of its call number `call` fail with `value`."""

    call: int
    which: tuple[int, ...] = (0, 1, 2, 3)
    value: float = torch.nan
    calls: list = field(default_factory=list)

    def __call__(self, x, prompts):
        scores = first(x).clone()
        if len(self.calls) == self.call:
            scores[list(self.which)] = self.value
        self.calls.append(scores)
        return scores


@pytest.mark.parametrize("potential", ["diff", "max", "sum"])
def test_a_failed_look_leaves_the_potentials_of_a_path_whole(potential):
    """All fail at one look: particle 0 is kept, with a warning, and the product of potentials is still exp(beta r)."""
    search = Search(Sometimes(1), Every(2), FeynmanKac(potential, 0.7), when_ess_below(1e-3))
    with pytest.warns(UserWarning, match="step 4: all rewards"):
        state = run(gaussian(), search, n=4, steps=8)
    assert torch.equal(state.trace[1].index, torch.zeros(1, 4, dtype=torch.long))
    expected = torch.log_softmax(0.7 * state.x[:, 0], 0)  # one path until step 4: the weights differ by what came after
    assert torch.allclose(state.logw, expected, atol=1e-5)


@pytest.mark.parametrize("potential", ["diff", "max", "sum"])
def test_a_failed_particle_never_continues(potential):
    search = Search(Sometimes(0, (1,)), Every(4), FeynmanKac(potential, 0.7), when_ess_below(1.0))
    state = run(gaussian(), search, n=4, steps=8)
    assert 1 not in state.trace[0].index
    assert torch.isfinite(state.logw).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("beta", [0.0, -1.0, 2.0])
def test_a_failed_score_loses_at_every_beta(value, beta):
    """beta = 0 gives equal chances, beta < 0 looks for small rewards: what failed is chosen by neither."""
    search = Search(Sometimes(0, (0, 2), value), Every(8), Value(beta), one)
    for seed in range(8):
        search.reward.calls.clear()
        assert int(run(gaussian(), search, n=4, steps=8, seed=seed).trace[0].index[0, 0]) in (1, 3)


def test_all_failed_keeps_particle_zero_and_says_so():
    plain = run(gaussian(), n=1, steps=8)
    with pytest.warns(UserWarning, match="particle 0 is kept"):
        state = run(gaussian(), best_of_n(Sometimes(0)), n=4, steps=8)
    assert torch.equal(winners(state), plain.x)


def test_one_failure_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(gaussian(), best_of_n(Sometimes(0, (0,))), n=4, steps=8)


def test_failures_of_one_prompt_leave_the_other_alone():
    with pytest.warns(UserWarning, match="all rewards of a prompt"):
        state = run(gaussian(), best_of_n(Sometimes(0)), n=4, groups=2, steps=8)
    plain = run(gaussian(), n=4, groups=2, steps=8)
    assert torch.equal(winners(state)[:, 0], torch.stack([plain.x[0, 0], plain.x[4:, 0].max()]))


def test_one_particle_is_the_plain_run():
    for search in (best_of_n(first), code(first, 2), svdd(first, 1.0), fk(first, 1.0, 2)):
        assert torch.equal(run(gaussian(), search, n=1, steps=8).x, run(gaussian(), steps=8).x)


def test_feynman_kac_without_resampling_weighs_by_the_final_reward():
    """Whatever the kind, the weights of untouched paths are softmax(beta r(x))."""
    for potential in ("diff", "max", "sum"):
        state = run(
            gaussian(), Search(first, Every(2), FeynmanKac(potential, 0.7), when_ess_below(1e-3)), n=16, steps=8
        )
        assert torch.allclose(torch.log_softmax(state.logw, 0), torch.log_softmax(0.7 * state.x[:, 0], 0), atol=1e-5)
        assert torch.allclose(weighted(state, torch.ones(16)), torch.ones(1))


def test_two_searches_at_one_step_choose_independently():
    """Two resamplings with flat weights in a row: were their random numbers equal, so were their indices."""
    flat = Search(lambda x, prompts: torch.zeros(len(x)), Every(2), Value(), multinomial)
    trace = run(gaussian(), [flat, flat], n=16, steps=4).trace
    assert [look.i for look in trace] == [2, 2, 4, 4]
    assert not torch.equal(trace[0].index, trace[1].index)


def test_a_common_start_needs_a_second_step():
    """One step from equal particles, the last, draws no noise: nothing differs, and the search would be idle."""
    with pytest.raises(ValueError, match="common_start=False"):
        run(gaussian(), code(first, block=1), n=4, schedule=flow(1))
    assert len(run(gaussian(), code(first, block=1, common_start=False), n=4, schedule=flow(1)).x.unique()) == 1


def test_repr_is_the_configuration():
    shown = repr(fk(Value(), 2.0))
    assert "0x" not in shown
    assert "when_ess_below(fraction=0.5, pick=systematic)" in shown
    assert "pick=greedy" in repr(code(Value()))


def test_reward_calls_and_decodes_are_counted():
    state = run(gaussian(), Search(quadratic, Every(5), Value(), prune(2)), n=4, groups=3, steps=10, decode=lambda x: x)
    assert state.run.ledger.reward_calls == state.run.ledger.decodes == 3 * (4 + 2)


def test_seconds_are_those_of_the_run():
    """The time that the caller spends between two states is not the run's; seed search in `start` is."""

    class Slow(Search):
        def start(self, state):
            time.sleep(0.05)
            return state

    for state in sample(gaussian(), (1,), vp(4), Slow(first, Every(None)), n=2):
        time.sleep(0.05)
    assert 0.05 <= state.run.ledger.seconds < 0.15


def test_a_latent_reward_sees_x0_and_nothing_is_decoded():
    class Latent:
        needs_decode = False

        def __call__(self, x0, prompts):
            return first(x0, prompts)

    run_with = lambda reward: run(gaussian(), code(reward, 2), n=4, steps=6, decode=lambda x0: x0 + 100)  # noqa: E731
    latent, decoded = run_with(Latent()), run_with(first)
    assert torch.equal(latent.x, decoded.x)
    assert latent.run.ledger.decodes == 0 < decoded.run.ledger.decodes
    assert torch.allclose(latent.trace[-1].scores + 100, decoded.trace[-1].scores)


def test_two_searches_of_one_chain_remember_apart():
    """A second search whose reward is constant changes no weight, so it must not change the first one's either."""
    fk_search = Search(first, Every(2), FeynmanKac("diff", 0.7), when_ess_below(1e-6))
    idle = Search(lambda x, prompts: torch.ones(len(x)), Every(2), FeynmanKac("diff", 0.7), when_ess_below(1e-6))
    alone, both = (run(gaussian(), chosen, n=16, steps=8) for chosen in ([fk_search], [fk_search, idle]))
    assert torch.allclose(torch.log_softmax(alone.logw, 0), torch.log_softmax(both.logw, 0), atol=1e-5)
