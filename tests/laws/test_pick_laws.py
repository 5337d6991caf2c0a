"""Picks: unbiased, in bounds, and never continuing what has weight zero."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import estimate

from steer.pick import ess, greedy, multinomial, one, prune, systematic, top_k, when_ess_below

PICKS = {
    "greedy": greedy,
    "one": one,
    "multinomial": multinomial,
    "systematic": systematic,
    "top_k": top_k(2),
    "prune": prune(2),
    "ess": when_ess_below(0.5),
}
weight = st.one_of(st.floats(-20, 20, width=32), st.just(-float("inf")))
groups = st.lists(st.lists(weight, min_size=4, max_size=4), min_size=1, max_size=5).map(torch.tensor)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def children(index: torch.Tensor) -> torch.Tensor:
    """(P, n): how many slots continue each particle."""
    return torch.nn.functional.one_hot(index, index.shape[-1]).sum(1)


@pytest.mark.parametrize("pick", [one, multinomial, systematic])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unbiased(pick, seed):
    """The expected number of children is n w."""
    logw = torch.tensor([0.3, -1.0, -torch.inf, 2.0, 0.0])
    counts = children(pick(logw.expand(20_000, 5), seeded(seed)).index)
    for k, expected in enumerate(5 * torch.softmax(logw, 0)):
        mean, error = estimate(counts[:, k])
        assert abs(mean - expected) <= 3.5 * error, (k, mean, error, expected)


@given(groups)
def test_systematic_rounds_n_w(logw):
    counts = children(systematic(logw, seeded()).index)
    alive = ~torch.isneginf(logw).all(-1)
    expected = 4 * torch.softmax(logw[alive].double(), -1)
    assert (counts[alive] >= (expected - 1e-9).floor()).all()
    assert (counts[alive] <= (expected + 1e-9).ceil()).all()


def test_systematic_leaves_equal_weights_alone():
    index = systematic(torch.full((300, 1000), -3.7), seeded()).index
    assert torch.equal(index, torch.arange(1000).expand(300, -1))


def test_systematic_varies_less_than_multinomial():
    logw = torch.randn(4000, 8, generator=seeded(1))
    off = [
        (children(p(logw, seeded()).index) - 8 * torch.softmax(logw, -1)).square().mean()
        for p in (systematic, multinomial)
    ]
    assert off[0] < 0.5 * off[1]


@pytest.mark.parametrize("name", PICKS)
@given(logw=groups)
def test_weight_zero_never_continues(name, logw):
    index, left = PICKS[name](logw, seeded())
    assert index.shape == left.shape == logw.shape
    assert (left > -torch.inf).any(-1).all()
    dead = torch.isneginf(logw)
    continues = dead.gather(1, index) & ~torch.isneginf(left)
    assert not continues[~dead.all(-1)].any()
    assert (index[dead.all(-1)] == 0).all()


@given(groups)
def test_ess_is_between_one_and_the_number_alive(logw):
    size, alive = ess(logw), (~torch.isneginf(logw)).sum(-1)
    some = alive > 0
    assert (size[some] >= 1 - 1e-5).all()
    assert (size[some] <= alive[some] * (1 + 1e-5)).all()
    assert (size[~some] == 0).all()


def test_ess_of_known_weights():
    expected = torch.tensor([4.0, 1.0, 2.0])
    weights = torch.tensor([[1.0, 1, 1, 1], [0, 1, 0, 0], [3, 0, 3, 0]])
    assert torch.allclose(ess(weights.log() + 40), expected)


def test_ties_go_to_the_lower_number():
    logw = torch.tensor([[0.0, 2, 2, 1], [1, 1, 1, 1]])
    assert greedy(logw, seeded()).index.tolist() == [[1] * 4, [0] * 4]
    assert top_k(3)(logw, seeded()).index.tolist() == [[1, 2, 3, 1], [0, 1, 2, 0]]


def test_prune_keeps_k_slots():
    index, left = prune(2)(torch.tensor([[0.0, 3, 1, 2]]), seeded())
    assert index.tolist() == [[1, 3, 1, 3]]
    assert torch.isneginf(left).tolist() == [[False, False, True, True]]


def test_beams_share_the_slots_of_failed_ones():
    inf = torch.inf
    logw = torch.tensor([[-inf, 5.0, -inf, -inf], [-inf] * 4, [1.0, -inf, 3.0, -inf]])
    assert top_k(3)(logw, seeded()).index.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [2, 0, 2, 0]]


def test_ess_trigger_acts_on_each_group_alone():
    logw = torch.tensor([[0.0, 0, 0, 0], [9, 0, 0, 0]])
    index, left = when_ess_below(0.5, greedy)(logw, seeded())
    assert index.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert torch.allclose(left.exp(), torch.tensor([[0.25] * 4, [1.0] * 4]))


def test_ess_trigger_keeps_the_weights_of_those_that_stay():
    logw = torch.tensor([[0.1, -0.2, 0.3, -torch.inf]])
    index, left = when_ess_below(0.3)(logw, seeded())
    assert index.tolist() == [[0, 1, 2, 3]]
    assert torch.allclose(left, torch.log_softmax(logw, -1))


@pytest.mark.parametrize("name", PICKS)
def test_everything_stays_on_the_device_of_the_weights(name):
    index, left = PICKS[name](torch.zeros(2, 4, device="meta"), None)
    assert index.device.type == left.device.type == "meta"


@pytest.mark.parametrize("name", PICKS)
def test_repr_is_the_configuration(name):
    shown = repr(PICKS[name])
    assert "0x" not in shown
    assert eval(shown, vars(__import__("steer.pick", fromlist=["pick"]))) == PICKS[name]


@pytest.mark.parametrize(
    ("make", "said"), [(lambda: top_k(0), "k = 0"), (lambda: prune(-1), "k = -1"), (lambda: when_ess_below(0), "0")]
)
def test_bad_settings_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("pick", [top_k(5), prune(5)])
def test_more_survivors_than_particles_are_refused(pick):
    with pytest.raises(ValueError, match="5 of 4"):
        pick(torch.zeros(1, 4), seeded())
