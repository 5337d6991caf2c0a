"""What examples have to teach: scores against one-hot vectors and autograd, and the examples that are kept for them."""

import pytest
import torch
from text_toys import EXAMPLES, generator, task
from torch.nn import functional as F

from steer.training import own
from steer.training.text import grand, hardest, scored
from steer.training.text.scores import el2n, entropy, head_gradient, margin, nll
from steer.training.text.subset import DynamicSubset

LOGITS = torch.tensor([0.5, 0.25, 0.25]).log()[None]


@pytest.mark.parametrize(
    ("score", "right", "wrong"),
    [
        (el2n, (0.25 + 2 * 0.0625) ** 0.5, (0.25 + 0.5625 + 0.0625) ** 0.5),
        (nll, 0.6931472, 1.3862944),
        (margin, -0.25, 0.25),
        (entropy, 1.0397208, 1.0397208),
    ],
)
def test_scores_by_hand(score, right, wrong):
    assert score(LOGITS, torch.tensor([0])).item() == pytest.approx(right, rel=1e-6)
    assert score(LOGITS, torch.tensor([1])).item() == pytest.approx(wrong, rel=1e-6)


def test_el2n_is_the_distance_from_the_one_hot_vector():
    logits = torch.randn(9, 50, generator=generator(), dtype=torch.float64) * 3
    ids = torch.arange(9)
    far = (logits.softmax(-1) - F.one_hot(ids, 50)).norm(dim=-1)
    torch.testing.assert_close(el2n(logits, ids), far)
    sure = torch.full((1, 50), -1e4).index_fill(1, torch.tensor([3]), 0.0)
    assert el2n(sure, torch.tensor([3])) == 0


@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_of_a_linear_head_needs_no_backward_pass(bias):
    head = torch.nn.Linear(6, 5, bias=bias, dtype=torch.float64)
    states = torch.randn(4, 6, generator=generator(), dtype=torch.float64)
    ids, norms = torch.tensor([0, 4, 2, 2]), []
    for h, y in zip(states, ids):
        gradients = torch.autograd.grad(F.cross_entropy(head(h[None]), y[None]), list(head.parameters()))
        norms.append(torch.cat([g.flatten() for g in gradients]).norm())
    torch.testing.assert_close(head_gradient(head(states), ids, states, bias), torch.stack(norms))


def test_an_examples_score_is_the_mean_over_its_answer():
    one = task()
    found = scored(one, nll)
    for k, score in enumerate(found):
        torch.testing.assert_close(score, one.loss(one.model, one.rows.take(torch.tensor([k]))).detach())
    assert one.ledger.backward_tokens == 0


def test_grand_of_the_head_is_its_formula():
    """Phi's output layer has a bias; an answer of one token, without its end."""
    one = task("phi", end=False, examples=EXAMPLES[:1])
    handle = own(one.model, lambda name, parameter: name.startswith("lm_head"))
    rows = one.rows
    out = one.model(**rows.inputs(), output_hidden_states=True)
    expected = head_gradient(out.logits[:, -2], rows.input_ids[:, -1], out.hidden_states[-1][:, -2])
    torch.testing.assert_close(grand(handle, one), expected, rtol=1e-4, atol=0.0)


def test_grand_is_the_norm_of_all_that_is_trained():
    one = task()
    handle = own(one.model)
    loss = one.loss(one.model, one.rows.take(torch.tensor([4])))
    loss.backward()
    whole = torch.cat([p.grad.flatten() for p in handle.parameters.values() if p.grad is not None]).norm()
    torch.testing.assert_close(grand(handle, one)[4], whole)


def test_the_hardest_are_kept_after_the_very_hardest():
    scores = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.5, 0.7, 0.2, 0.6, 0.4, 0.8])
    assert hardest(scores, 0.3).tolist() == [1, 3, 9]  # of equal ones the first
    assert hardest(scores, 0.3, top=0.2).tolist() == [3, 5, 7]
    assert hardest(scores, 1.0).tolist() == list(range(10))
    assert hardest(scores, 0.01).tolist() == [1]
    for keep, top in ((0.0, 0.0), (0.9, 0.2), (0.5, -0.1)):
        with pytest.raises(ValueError, match="together at most 1"):
            hardest(scores, keep, top)


def dynamic(**dials) -> DynamicSubset:
    one = task()
    return DynamicSubset(own(one.model), one, **{"batch": 2, "warm": 1, "cycle": 2, "keep": 0.5, **dials})


def drawn(objective: DynamicSubset, g: torch.Generator, times: int) -> list[int]:
    """Which examples the next batches hold."""
    found, places = [], {tuple(ids.tolist()): k for k, ids in enumerate(objective.task.rows.input_ids)}
    width = objective.task.rows.input_ids.shape[1]
    for _ in range(times):
        ids = objective.draw(g).input_ids
        found += [places[tuple(row.tolist())] for row in F.pad(ids, (width - ids.shape[1], 0))]
    return found


def test_an_epoch_over_all_is_followed_by_cycles_over_the_hardest():
    objective, g = dynamic(), generator()
    assert sorted(drawn(objective, g, 3)) == list(range(6))
    hard = hardest(scored(objective.task), 0.5).tolist()
    for _ in range(2):  # a cycle of two epochs of two batches, of 2 and 1
        assert sorted(drawn(objective, g, 2)) == hard
    easy = objective.task.rows.take(torch.tensor([k for k in range(6) if k not in hard]))
    objective.task.answers = harder(objective.task.answers, easy)
    assert sorted(drawn(objective, g, 2)) != hard


def harder(answers, rows):
    """Logits that are wrong for the answers of these rows, as after training on the others."""
    tokens = set(rows.input_ids[rows.answer].tolist())

    def changed(batch, model=None):
        logits, ids, row = answers(batch, model)
        some = torch.tensor([token in tokens for token in ids.tolist()])
        return (
            torch.where(
                some[:, None],
                -50 * F.one_hot(ids, logits.shape[1]).to(logits),
                9.0 * F.one_hot(ids, logits.shape[1]).to(logits),
            ),
            ids,
            row,
        )

    return changed


def test_scores_are_a_moving_average_with_most_weight_on_the_newest():
    objective, g = dynamic(smooth=0.8, cycle=1), generator()
    drawn(objective, g, 4)
    first = scored(objective.task)
    torch.testing.assert_close(objective.scores, first)
    with torch.no_grad():
        objective.task.model.lm_head.weight.mul_(2)
    drawn(objective, g, 2)
    torch.testing.assert_close(objective.scores, 0.8 * scored(objective.task) + 0.2 * first)


def test_without_a_first_epoch_the_first_cycle_is_drawn():
    seen = {tuple(sorted(drawn(dynamic(warm=0), generator(seed), 2))) for seed in range(6)}
    assert len(seen) > 1
    assert all(len(set(one)) == 3 for one in seen)


@pytest.mark.parametrize("bad", [{"warm": -1}, {"cycle": 0}, {"smooth": 0.0}])
def test_schedules_that_cannot_be_are_refused(bad):
    with pytest.raises(ValueError, match="expected warm >= 0, cycle >= 1 and smooth in"):
        dynamic(**bad)
