"""Scores against a net worked out by hand, and masks that are exact."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from weights_toys import examples, net, tokens

from steer.training.weights.attach import weights
from steer.training.weights.collect import batches, collect, covariance, flow
from steer.training.weights.scores import SCORES, below, salient, scores
from steer.training.weights.select import select, shares

EXACT = 1e-10


@pytest.fixture
def by_hand():
    """y = W2 tanh(W1 x + b1) + b2 and the loss |y - t|^2 / 2 on five points: gradients of W1 and W2 for each, and the
    derivative of these along themselves, worked out without autograd."""
    model, generator = net(3, 3, 3, dtype=torch.float64), torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    w1, w2 = model[0].weight.detach(), model[2].weight.detach()
    gradients, curvatures = [], []
    for point, target in zip(x, t):
        h = torch.tanh(w1 @ point + model[0].bias.detach())
        slope = 1 - h**2
        d2 = w2 @ h + model[2].bias.detach() - target
        d1 = w2.T @ d2 * slope
        g1, g2 = torch.outer(d1, point), torch.outer(d2, h)
        rh = slope * (g1 @ point)
        rd2 = g2 @ h + w2 @ rh
        rd1 = (g2.T @ d2 + w2.T @ rd2) * slope + w2.T @ d2 * (-2 * h * rh)
        gradients.append((g1, g2))
        curvatures.append((torch.outer(rd1, point), torch.outer(rd2, h) + torch.outer(d2, rh)))
    return model, list(zip(x[:, None], t[:, None])), gradients, curvatures


def half_square(model, batch):
    return (model(batch[0]) - batch[1]).square().sum() / 2


def of(model):
    return {"0.weight": model[0].weight, "2.weight": model[2].weight}


def test_every_score_is_as_worked_out_by_hand(by_hand):
    model, data, gradients, curvatures = by_hand
    parameters = of(model)
    found = collect(model, half_square, data, parameters, ("gradient", "square", "curvature"))
    found["flow"] = flow(model, lambda twin: twin(torch.ones(1, 3, dtype=torch.float64)), parameters)
    found["draw"] = {name: torch.full_like(w, 0.25) for name, w in parameters.items()}
    found["reached"] = {name: w.detach() - 0.5 for name, w in parameters.items()}
    ones = torch.ones(3, dtype=torch.float64)
    inner = (model[0].weight.abs() @ ones + model[0].bias.abs()).detach()
    flows = torch.outer(model[2].weight.detach().abs().T @ ones, ones), torch.outer(ones, inner)
    for k, (name, parameter) in enumerate(parameters.items()):
        w, g = parameter.detach(), torch.stack([pair[k] for pair in gradients])
        mean, hg = g.mean(0), torch.stack([pair[k] for pair in curvatures]).mean(0)
        wanted = {
            "random": torch.full_like(w, 0.25),
            "magnitude": w.abs(),
            "gradient": mean.abs(),
            "fisher": g.square().mean(0),
            "snip": (w * mean).abs(),
            "force": -w * mean,
            "taylor": (w * mean) ** 2,
            "grasp": w * hg,
            "synflow": w.abs() * flows[k],
            "movement": torch.full_like(w, 0.5),
        }
        assert set(wanted) == set(SCORES)
        for kind, value in wanted.items():
            assert torch.allclose(scores(kind, {name: w}, found)[name], value, rtol=EXACT, atol=EXACT), kind


def test_a_pass_over_data_leaves_the_model_as_it_was():
    task = tokens()
    task.model.train()
    task.model.model.layers[0].eval()
    before = [(m, m.training) for m in task.model.modules()], {n: w.clone() for n, w in task.model.state_dict().items()}
    parameters = {"w": task.model.model.layers[0].mlp.up_proj.weight}
    found = collect(task.model, task.loss, batches(task, 2), parameters, ("gradient", "curvature"))
    assert found["curvature"]["w"].abs().max() > 0
    assert [(m, m.training) for m in task.model.modules()] == before[0]
    assert all(torch.equal(w, before[1][n]) for n, w in task.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in task.model.parameters())


def test_half_precision_adds_up_in_float32():
    task = examples()
    parameters = {"0.weight": task.model[0].weight}
    many = collect(task.model, task.loss, batches(task, 4, 8), parameters)["gradient"]
    task.model.to(torch.bfloat16)
    task.inputs = task.inputs.to(torch.bfloat16)
    half = collect(task.model, task.loss, batches(task, 4, 8), {"0.weight": task.model[0].weight})["gradient"]
    assert half["0.weight"].dtype == torch.float32
    assert (half["0.weight"] - many["0.weight"]).norm() < 0.05 * many["0.weight"].norm()


def test_covariance_of_inputs():
    task = examples(torch.float64)
    found = covariance(task.model, task.loss, batches(task, 3, 4), {"0": task.model[0]})["0"]
    drawn = [batch[0] for batch in batches(task, 3, 4)]
    wanted = sum((x / x.max().abs()).T @ (x / x.max().abs()) for x in drawn) / 3
    assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert not task.model[0]._forward_pre_hooks


@given(
    values=st.lists(st.integers(-3, 3), min_size=12, max_size=12),
    k=st.integers(1, 12),
    keep=st.sampled_from(["largest", "smallest"]),
)
def test_masks_have_exact_counts_and_ties_go_to_the_lower_index(values, k, keep):
    tensor = torch.tensor(values, dtype=torch.float32)
    parts = {"a": tensor[:4].view(2, 2), "b": tensor[4:].view(2, 2, 2)}
    order = sorted(range(12), key=lambda i: (-values[i] if keep == "largest" else values[i], i))
    wanted = torch.tensor([i in order[:k] for i in range(12)])
    masks = select(parts, k, "model", keep)
    assert torch.equal(torch.cat([masks["a"].flatten(), masks["b"].flatten()]), wanted)
    each = select(parts, k, "tensor", keep)
    counts = {name: int(mask.sum()) for name, mask in each.items()}
    assert counts == shares(k, {"a": 4, "b": 8})
    assert sum(counts.values()) == k
    if k <= 2:
        rows = select(parts, k, "row", keep)
        assert rows["a"].sum(-1).tolist() == [k, k]
        assert rows["b"].flatten(1).sum(-1).tolist() == [k, k]
        first = sorted(range(4, 8), key=lambda i: (-values[i] if keep == "largest" else values[i], i))[:k]
        assert rows["b"][0].flatten().tolist() == [i in first for i in range(4, 8)]


def test_a_fraction_is_rounded_up_but_not_by_an_error_of_floats():
    scored = {"a": torch.arange(100.0)}
    assert math.ceil(0.07 * 100) == 8
    assert [int(select(scored, f)["a"].sum()) for f in (0.07, 0.071, 1.0)] == [7, 8, 100]


@pytest.mark.parametrize("amount", [0, 13, -1, 0.0, 1.5])
def test_amounts_that_are_not_there(amount):
    with pytest.raises(ValueError, match=r"expected a count in 1 \.\. 12 or a fraction"):
        select({"a": torch.arange(12.0)}, amount)


def test_other_bad_input():
    with pytest.raises(ValueError, match="not finite"):
        select({"a": torch.tensor([1.0, float("nan")])}, 1)
    with pytest.raises(ValueError, match="expected row, tensor or model"):
        select({"a": torch.ones(2)}, 1, "column")
    with pytest.raises(ValueError, match="'hessian': expected one of"):
        scores("hessian", {}, {})
    task = examples()
    with pytest.raises(ValueError, match="ended in a rewind"):
        salient("movement", 1)(weights()(task), task)
    with pytest.raises(ValueError, match="at least one batch"):
        collect(task.model, task.loss, [], {"w": task.model[0].weight})


@pytest.mark.parametrize("kind", sorted(set(SCORES) - {"movement"}))
@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_speft_trains_exactly_k(kind, scope):
    for task in (examples(), tokens()):
        handle = weights()(task)
        masks = salient(kind, 40, scope, examples=2)(handle, task)
        assert sum(int(mask.sum()) for mask in masks.values()) == 40
        assert masks.keys() == handle.parameters.keys()


def test_gps_takes_a_convolution_as_rows_and_leaves_biases_whole():
    task = examples()
    masks = salient("gradient", 2, "row", ("0",), examples=2)(weights(biases=True)(task), task)
    assert masks.keys() == {"0.weight"}
    assert masks["0.weight"].sum(-1).tolist() == [2] * 12
    kernels = select({"k": torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))}, 1, "row")["k"]
    assert kernels.shape == (5, 3, 2, 2)
    assert kernels.flatten(1).sum(-1).tolist() == [1] * 5


def test_below_follows_the_weights():
    task = examples()
    handle = weights(("0",))(task)
    masks = salient("magnitude", 0.25, "tensor", ("0",), keep="smallest")(handle, task)
    asked = below(handle, masks)
    assert torch.equal(asked(handle.parameters)["0.weight"], masks["0.weight"])
    handle.parameters["0.weight"].data.mul_(100)
    assert not asked(handle.parameters)["0.weight"].any()
