"""Picks that change from look to look: widths that hold, failures that never continue, settings that are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import first, gaussian, run

from steer import plan
from steer.diffusion.controllers import Search, Value, funnel, halving, rollover
from steer.diffusion.controllers.when import Adaptive, Every
from steer.diffusion.solve import ddim
from steer.pick import one_in, stay, top_k
from steer.plan import Seen, diverse, narrow, roll_over

PLANS = {
    "narrow": narrow((4, 2, 1)),
    "narrow-keep": narrow((4, 3), keep=1),
    "roll_over": roll_over(2.5),
    "diverse": diverse(3, 2.0),
}
weight = st.one_of(st.floats(-20, 20, width=32), st.just(-float("inf")))
groups = st.lists(st.lists(weight, min_size=4, max_size=4), min_size=1, max_size=5).map(torch.tensor)
GENERATOR = torch.Generator()


def seen(scores: torch.Tensor, look: int = 1, x0: torch.Tensor | None = None, device: str = "cpu") -> Seen:
    """A look after one that has scored two particles a prompt, whose best was 0."""
    x0 = torch.randn(*scores.shape, 3, generator=torch.Generator().manual_seed(0)) if x0 is None else x0
    scored = (2 + (~torch.isneginf(scores)).sum(-1)).float()
    return Seen(look, *(t.to(device) for t in (scored, scores, torch.zeros(scores.shape), x0)))


def picked(plan, logw: torch.Tensor, **options):
    return plan.at(seen(logw, **options))(logw, GENERATOR)


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=50)
@given(logw=groups)
def test_weight_zero_never_continues(name, logw):
    index, left = picked(PLANS[name], logw)
    dead, on = torch.isneginf(logw), ~torch.isneginf(left)
    assert index.shape == left.shape == logw.shape
    assert on.any(-1).all()
    assert not (dead.gather(1, index) & on)[~dead.all(-1)].any()
    assert (index[dead.all(-1)] == 0).all()


@settings(max_examples=50)
@given(groups)
def test_one_in_keeps_the_better_half_of_those_alive(logw):
    index, left = one_in(2)(logw, GENERATOR)
    alive = (~torch.isneginf(logw)).sum(-1)
    kept = (~torch.isneginf(left)).sum(-1)
    assert torch.equal(kept, (alive.clamp_min(1) + 1) // 2)
    for row, chosen, k in zip(logw, index, kept.tolist()):
        assert torch.equal(row[chosen[:k]], row.sort(descending=True).values[:k])


def test_stay_moves_nothing_and_keeps_the_weights():
    logw = torch.tensor([[0.5, -1.0, -torch.inf]])
    index, left = stay(logw, GENERATOR)
    assert index.tolist() == [[0, 1, 2]]
    assert torch.equal(left, torch.log_softmax(logw, -1))


def test_the_widths_of_every_look():
    logw = torch.tensor([[0.0, 3, 1, 2]])
    for look, on in ((0, 2), (1, 1), (2, 1), (9, 1)):
        index, left = picked(PLANS["narrow"], logw, look=look)
        assert index[0, :on].tolist() == [1, 3][:on]
        assert int((left == 0).sum()) == on
    index, left = picked(PLANS["narrow-keep"], logw, look=0)
    assert index.tolist() == [[1, 1, 1, 1]]
    assert torch.isneginf(left).tolist() == [[False, False, False, True]]


@pytest.mark.parametrize(
    ("scores", "scored", "width"),
    [
        ([-1.0, 5, 9, -1], 4, 2),  # the second child is the first to beat 0
        ([5.0, -1, -1, -1], 4, 1),
        ([-1.0, -1, -1, -1], 4, 3),  # none: all that is saved of 2.5 x 3
        ([-1.0, -1, 5, -1], 6, 1),  # three are needed, but one is all that is saved
    ],
)
def test_roll_over_spends_what_is_needed_of_what_is_saved(scores, scored, width):
    now = Seen(1, torch.tensor([float(scored)]), torch.tensor([scores]), torch.zeros(1, 4), torch.zeros(1, 4, 1))
    index, left = roll_over(2.5).at(now)(now.scores, GENERATOR)
    assert int((left == 0).sum()) == width
    assert (index == int(now.scores.argmax())).all()


def test_diverse_prefers_the_unlike():
    """Two good ones alike and one worse that is opposite: at weight 0 the two best, at weight 5 one of each kind."""
    x0 = torch.tensor([[[1.0, 0], [1, 0.1], [-1, 0], [-1, 0.1]]])
    logw = torch.tensor([[3.0, 2.9, 1, 0]])
    assert picked(diverse(2, 0.0), logw, x0=x0).index.tolist() == top_k(2)(logw, GENERATOR).index.tolist()
    assert picked(diverse(2, 5.0), logw, x0=x0).index.tolist() == [[0, 2, 0, 2]]


@pytest.mark.parametrize("name", PLANS)
def test_repr_is_the_configuration(name):
    assert eval(repr(PLANS[name]), vars(plan)) == PLANS[name]


@pytest.mark.parametrize("name", PLANS)
def test_everything_stays_on_the_device_of_the_weights(name):
    logw = torch.zeros(2, 4, device="meta")
    index, left = PLANS[name].at(seen(torch.zeros(2, 4), device="meta"))(logw, GENERATOR)
    assert index.device.type == left.device.type == "meta"


@pytest.mark.parametrize("widths", [(), (4, 0), (2, 4), (4, 2, 3), (0,), (4, -1)])
def test_widths_shrink_to_one_or_more(widths):
    with pytest.raises(ValueError, match="none under 1, none above the one before"):
        funnel(first, widths)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: narrow((4, 2), keep=0), "keep = 0"),
        (lambda: roll_over(0.5), "does not pay for one trajectory"),
        (lambda: roll_over(float("nan")), "quota = nan"),
        (lambda: diverse(0), "at least one survivor"),
        (lambda: diverse(2, -1.0), "a weight >= 0"),
        (lambda: one_in(1), "keeps all"),
        (lambda: Adaptive(0), "1 <= block <= longest"),
        (lambda: Adaptive(9, 8), "1 <= block <= longest"),
        (lambda: Adaptive(ess=0.0), "0 < ess <= 1"),
    ],
)
def test_bad_settings_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (funnel(first, (8, 4), 2), r"begin with 8 particles, but the run has n = 4"),
        (funnel(first, (2, 1), 2), r"begin with 2 particles, but the run has n = 4"),
        (funnel(first, (4, 3, 2, 1), 4), "never reached, as the run has 2 stretches"),
        (rollover(first, 5, 2), "quota = 5 of n = 4"),
        (Search(first, Every(2), Value(), diverse(5)), "5 of 4 particles"),
    ],
)
def test_widths_fit_the_run(search, said):
    with pytest.raises(ValueError, match=said):
        run(gaussian(), search, n=4, steps=8)


def test_widths_that_just_fit():
    state = run(gaussian(), funnel(first, (4, 3, 2, 1), 2), n=4, steps=8)
    assert [int(torch.isfinite(look.scores).sum()) for look in state.trace] == [4, 3, 2, 1]


@pytest.mark.parametrize("search", [funnel(first, (4, 2), 2), halving(first, 2)])
def test_a_search_that_copies_nothing_needs_no_noise(search):
    assert torch.isfinite(run(gaussian(), search, n=4, steps=8, solver=ddim(0)).x).all()


@pytest.mark.parametrize("search", [funnel(first, (4, 2), 2, keep=1), rollover(first, 2, 2)])
def test_a_search_that_copies_needs_noise(search):
    with pytest.raises(ValueError, match="draws no noise"):
        run(gaussian(), search, n=4, steps=8, solver=ddim(0))


def test_prompts_are_narrowed_apart():
    """Rollover gives each prompt its own width."""
    state = run(gaussian(), rollover(first, 2.5, 1), n=6, groups=30, steps=10)
    widths = torch.stack([torch.isfinite(look.scores).sum(-1) for look in state.trace])
    assert widths.unique(dim=1).shape[1] > 3


def test_a_search_that_narrows_and_widens_keeps_its_lineage():
    """A slot that comes back to life continues the ancestor that its look names."""
    state = run(gaussian(), rollover(first, 2, 1), n=6, groups=10, steps=8)
    for look in state.trace:
        assert torch.isfinite(look.scores.gather(1, look.index)).all()
