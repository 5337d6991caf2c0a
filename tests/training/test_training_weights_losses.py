"""T-Few's losses and the contrastive one, by hand; what the objectives ask of a task."""

import math

import pytest
import torch
from weights_toys import examples, tokens

from steer.training import Run, own, tune
from steer.training.weights.losses import choice_losses, contrast, few_shot, keeping, supervised
from steer.training.weights.methods import METHODS


def test_t_fews_losses_by_hand():
    """Two examples; two choices of unequal length, three of which the last is not there."""
    p = torch.tensor(
        [
            [[0.5, 0.25, 0.9], [0.8, 0.1, 0.7], [0.3, 0.3, 0.3]],
            [[0.2, 0.4, 0.6], [0.6, 0.5, 0.9], [0.9, 0.2, 0.1]],
        ],
        dtype=torch.float64,
    )
    counts = torch.tensor(
        [[[1, 1, 0], [1, 1, 1], [0, 0, 0]], [[1, 1, 1], [1, 0, 0], [1, 1, 0]]],
        dtype=torch.bool,
    )
    likely, unlikely, ranked = choice_losses(p.log(), counts, torch.tensor([0, 1]))
    assert float(likely) == pytest.approx(-(math.log(0.5) + math.log(0.25) + math.log(0.6)) / 3)
    wrong = [0.8, 0.1, 0.7, 0.2, 0.4, 0.6, 0.9, 0.2]
    assert float(unlikely) == pytest.approx(-sum(math.log(1 - x + 0.01) for x in wrong) / 8)
    means = [
        [(math.log(0.5) + math.log(0.25)) / 2, (math.log(0.8) + math.log(0.1) + math.log(0.7)) / 3],
        [(math.log(0.2) + math.log(0.4) + math.log(0.6)) / 3, math.log(0.6), (math.log(0.9) + math.log(0.2)) / 2],
    ]
    softmax = [-row[right] + math.log(sum(map(math.exp, row))) for row, right in zip(means, (0, 1))]
    assert float(ranked) == pytest.approx(sum(softmax) / 2)


def test_certain_wrong_tokens_and_minus_infinity_do_no_harm():
    logp = torch.tensor([[[0.0, -math.inf], [0.0, -math.inf]]], requires_grad=True)
    losses = choice_losses(logp, torch.tensor([[[True, False], [True, False]]]), torch.tensor([0]))
    sum(losses).backward()
    assert all(value.isfinite() for value in losses)
    assert logp.grad.isfinite().all()


@pytest.mark.parametrize("make", [examples, tokens])
def test_the_three_losses_are_added_with_their_weights(make):
    task = make()
    handle = own(task.model)
    value, noted = few_shot(4, 2.0, 0.5)(handle, task)(torch.Generator().manual_seed(0), 0)
    assert set(noted) == {"likely", "unlikely", "ranked"}
    assert value.item() == pytest.approx(noted["likely"] + 2 * noted["unlikely"] + 0.5 * noted["ranked"], rel=1e-6)


def test_the_contrastive_loss_by_hand():
    """Three anchors, of which one is alone with its label."""
    f = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 5.0]], dtype=torch.float64)
    similar = {(0, 1): 0.6, (0, 2): 0.0, (1, 2): 0.8}
    t = 0.5
    e = {pair: math.exp(value / t) for pair, value in similar.items()}
    wanted = -(math.log(e[0, 1] / (e[0, 1] + e[0, 2])) + math.log(e[0, 1] / (e[0, 1] + e[1, 2]))) / 2
    found = contrast(f.requires_grad_(), torch.tensor([7, 7, 1]), t)
    assert found.item() == pytest.approx(wanted)
    found.backward()
    assert f.grad.isfinite().all()


def test_lt_sfts_anchor_is_the_mean_distance_over_all_parameters():
    task = examples()
    handle = own(task.model, lambda name, parameter: name == "0.weight")
    handle.load({"0.weight": handle.start["0.weight"] + 0.5})
    plain, anchored = (
        supervised(4, anchor)(handle, task)(torch.Generator().manual_seed(0), 0)[0].item() for anchor in (0.0, 10.0)
    )
    assert anchored - plain == pytest.approx(10 * 0.5 * 96 / (96 + 12 + 48 + 4), rel=1e-5)


def test_what_a_task_has_not_is_said():
    class Bare:
        def __init__(self):
            self.model = examples().model

    for objective, name in ((few_shot(4), "choices"), (keeping(4), "logits")):
        with pytest.raises(ValueError, match=rf"asks for {name}\(model, batch\), and Bare has no such function"):
            objective(own(Bare().model), Bare())
    with pytest.raises(ValueError, match="Bare has no such function"):
        tune(Bare(), METHODS["gps"](score="contrastive"), Run(steps=1))


def test_lt_sft_trains_what_moved_most_from_where_it_began():
    """Exactly k entries, those that the first phase moved most; the second begins at the start, with an empty AdamW."""
    first = tune(examples(), METHODS["full"](lr=0.01), Run(steps=5))
    tuned = tune(examples(), METHODS["lt_sft"](lr=0.01, amount=20), Run(steps=10))
    moved = {name: (w - first.handle.start[name]).abs() for name, w in first.last.items()}
    limit = torch.cat([m.flatten() for m in moved.values()]).sort(descending=True).values[19]
    assert tuned.count == 20
    for name, w in tuned.last.items():
        assert torch.equal(w != tuned.handle.start[name], moved[name] >= limit)
    assert tuned.log[5]["loss"] == pytest.approx(
        float(examples().loss(examples().model, examples().batch(torch.Generator().manual_seed(1), 8))), rel=1e-6
    )


def test_spefts_rounds_keep_what_was_learnt():
    """Later rounds choose anew from where training is: more entries have changed than one round may."""
    tuned = tune(examples(), METHODS["speft"](amount=10, rounds=3, lr=0.05, examples=4), Run(steps=9))
    changed = sum(int((w != tuned.handle.start[name]).sum()) for name, w in tuned.last.items())
    assert 10 < changed <= 30
    assert tuned.count == 10
