"""Block-diagonal and butterfly layers, and mixout: laws of the layers themselves."""

from functools import partial

import pytest
import torch
from torch import nn
from weights_toys import examples, net

from steer.training import Run, own, tune
from steer.training.weights.attach import rotated, targeted
from steer.training.weights.layers import BlockDiagonal, Butterfly, around
from steer.training.weights.losses import mixed
from steer.training.weights.methods import METHODS
from steer.training.weights.mixout import Mixed, mixout
from steer.training.weights.task import Examples

DOUBLE = torch.float64


def linear(into: int, out: int, seed: int = 0) -> nn.Linear:
    return net(into, out, seed=seed, dtype=DOUBLE)[0]


def drawn(*shape: int, seed: int = 1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize(
    ("into", "out", "blocks", "many"), [(100, 100, 64, 50), (8, 12, 4, 4), (7, 5, 3, 3), (9, 2, 4, 3), (4, 4, 1, 1)]
)
def test_diablo_has_as_many_blocks_as_cover_the_layer(into, out, blocks, many):
    """N' d1 d2 numbers, also where the sides are no multiple of the blocks; merged they are one matrix."""
    layer = BlockDiagonal(linear(into, out), blocks)
    d1, d2 = -(-into // blocks), -(-out // blocks)
    assert layer.trained.shape == (many, d1, d2)
    x = drawn(3, 2, into)
    assert torch.equal(layer(x), layer.base(x))
    layer.trained.data.copy_(drawn(many, d1, d2))
    wanted = nn.functional.linear(x, layer.weight(), layer.base.bias)
    assert torch.allclose(layer(x), wanted, rtol=1e-12, atol=1e-12)
    off = layer.weight() - layer.base.weight
    inside = torch.block_diag(*torch.ones(many, d1, d2))[:into, :out].T.bool()
    assert (off[~inside] == 0).all()
    assert (off[inside] != 0).all()


def test_the_first_step_of_diablo_is_that_of_full_tuning_under_its_mask():
    layer, twin, x = BlockDiagonal(linear(6, 4), 2), linear(6, 4), drawn(5, 6)
    for each in (layer, twin):
        each(x).square().sum().backward()
    mask = torch.block_diag(*torch.ones(2, 3, 2)).T.bool()
    layer.trained.data -= 0.1 * layer.trained.grad
    twin.weight.data -= 0.1 * torch.where(mask, twin.weight.grad, 0)
    assert torch.allclose(layer.weight(), twin.weight, rtol=1e-10, atol=1e-10)


def rotation(block: int, factors: int, d: int, angles):
    """R by the paper: products of P blockdiag(R_i) P^T, P listing the even half blocks of each chunk before the odd."""
    made = torch.eye(d, dtype=DOUBLE)
    for i in range(factors):
        half, chunk = block // 2, block * 2**i
        order = torch.arange(d).view(-1, chunk // half, half)
        order = torch.cat([order[:, ::2], order[:, 1::2]], 1).flatten()
        p = torch.zeros(d, d, dtype=DOUBLE)
        p[torch.arange(d), order] = 1
        turns = []
        for angle in angles[i]:
            q = torch.zeros(block, block, dtype=DOUBLE)
            q[tuple(torch.triu_indices(block, block, 1))] = angle
            q = q - q.T
            turns.append((torch.eye(block) + q) @ torch.linalg.inv(torch.eye(block) - q))
        made = p @ torch.block_diag(*turns) @ p.T @ made
    return made


@pytest.mark.parametrize(("block", "factors", "d"), [(2, 6, 64), (4, 3, 32), (4, 1, 12), (8, 4, 64)])
def test_a_butterfly_is_its_product_of_factors(block, factors, d):
    layer = Butterfly(linear(d, 3), block, factors)
    assert layer.trained.numel() == d * (block - 1) * factors // 2
    x = drawn(5, d)
    assert torch.equal(layer(x), layer.base(x))
    layer.trained.data.copy_(drawn(*layer.trained.shape))
    r = rotation(block, factors, d, layer.trained.data)
    assert torch.allclose(layer.weight(), layer.base.weight @ r.T, rtol=1e-10, atol=1e-10)
    assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight(), layer.base.bias), rtol=1e-10, atol=1e-10)
    eye = torch.eye(d, dtype=DOUBLE)
    assert torch.allclose(r.T @ r, eye, atol=1e-10)
    w, base = layer.weight(), layer.base.weight
    assert torch.allclose(w @ w.T, base @ base.T, rtol=1e-10, atol=1e-10)  # angles between neurons are kept
    dense = d == block << (factors - 1)
    assert (r != 0).all() == dense


def test_one_factor_is_oft_of_peft():
    """The same rotation, from the same angles with the other sign."""
    task, other = examples(DOUBLE), examples(DOUBLE)
    ours = around(partial(Butterfly, block=4, factors=1))(task)
    theirs = rotated(4)(other)
    angles = {name: 0.3 * drawn(*w.shape) for name, w in ours.start.items()}
    ours.load(angles)
    for name, parameter in theirs.parameters.items():
        parameter.data.copy_(-angles[f"{name[0]}.trained"][0])
    x = drawn(3, 8)
    assert torch.allclose(task.model(x), other.model(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(task.model(x), examples(DOUBLE).model(x), rtol=1e-2)


def test_after_training_a_butterfly_still_turns():
    tuned = tune(examples(), METHODS["boft"](block=2, factors=2, lr=0.1), Run(steps=20))
    layer = tuned.handle.model[0]
    r = layer.turned(torch.eye(8))
    assert (r.T @ r - torch.eye(8)).abs().max() < 1e-5
    assert (r - torch.eye(8)).abs().max() > 0.1


@pytest.mark.parametrize(("block", "factors"), [(3, 1), (4, 3), (0, 1), (2, 0)])
def test_butterflies_that_do_not_fit(block, factors):
    with pytest.raises(ValueError, match="expected an even block, and inputs that are a multiple"):
        Butterfly(linear(8, 3), block, factors)


def test_a_diablo_without_blocks():
    with pytest.raises(ValueError, match="0 blocks: expected at least 1"):
        BlockDiagonal(linear(8, 3), 0)


@pytest.mark.parametrize("grain", ["element", "column"])
def test_mixout_is_unbiased(grain):
    """Mean over 3,000 draws within 5 standard errors, each of variance p / (1 - p) (W - u)^2; columns are whole."""
    w, u, p = drawn(4, 3), drawn(4, 3, seed=2), 0.7
    generator, total, n = torch.Generator().manual_seed(0), torch.zeros(4, 3, dtype=DOUBLE), 3000
    for _ in range(n):
        mixing = Mixed(u, p, grain, generator)
        total += mixing(w)
    assert mixing.factor.expand(4, 3).unique().numel() <= 2
    assert mixing.factor.shape == ((4, 3) if grain == "element" else (1, 3))
    error = (p / (1 - p) * (w - u).square() / n).sqrt()
    assert ((total / n - w).abs() < 5 * error).all()


@pytest.mark.parametrize("grain", ["element", "column"])
def test_mixout_pulls_towards_the_start(grain):
    """E[L(mixed)] = L(W) + p / (2 (1 - p)) sum_ij (W - u)_ij^2 sum_n x_nj^2 of half the squared error."""
    w, u, x, t, p = drawn(2, 3), drawn(2, 3, seed=2), drawn(6, 3, seed=3), drawn(6, 2, seed=4), 0.5
    generator = torch.Generator().manual_seed(0)

    def loss(weight):
        return (x @ weight.T - t).square().sum() / 2

    losses = torch.stack([loss(Mixed(u, p, grain, generator)(w)) for _ in range(3000)])
    wanted = loss(w) + p / (2 * (1 - p)) * ((w - u).square() * x.square().sum(0)).sum()
    assert (losses.mean() - wanted).abs() < 5 * losses.std() / len(losses) ** 0.5


def test_mixout_at_its_ends_and_its_gradient():
    w, u = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=2)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(Mixed(u, 1.0, "element", generator)(w), u)
    assert torch.allclose(Mixed(u, 0.0, "element", generator)(w), w, rtol=1e-15, atol=1e-15)
    mixing = Mixed(u, 0.6, "element", generator)
    assert torch.autograd.gradcheck(mixing, (w,))
    mixing(w).sum().backward()
    assert torch.equal(w.grad, mixing.factor)
    mask = (mixing.factor > 0).to(DOUBLE)
    dropped = Mixed(torch.zeros_like(u), 0.6, "element", torch.Generator().manual_seed(5))
    mask = (torch.rand(4, 3, generator=torch.Generator().manual_seed(5)) >= 0.6).to(DOUBLE)
    assert torch.allclose(dropped(w), w * mask / 0.4, rtol=1e-14)  # u = 0 is dropout of the weight


def test_mixout_is_of_weights_and_of_the_time_inside():
    """The bias is not mixed; the layer is itself afterwards, also after an exception."""
    task = examples(DOUBLE)
    handle = own(task.model)
    with torch.no_grad():
        for parameter in handle.parameters.values():
            parameter += 1
    before, keys = {id(p) for p in task.model.parameters()}, list(task.model.state_dict())
    x = drawn(3, 8)
    plain = task.model(x)
    with mixout(handle, 1.0, "element", torch.Generator()):
        base = nn.functional.linear(x, handle.start["0.weight"], handle.parameters["0.bias"])
        assert torch.allclose(task.model[0](x), base, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError), mixout(handle, 0.5, "element", torch.Generator()):
        task.model(drawn(3, 7))
    assert torch.equal(task.model(x), plain)
    assert {id(p) for p in task.model.parameters()} == before
    assert list(task.model.state_dict()) == keys
    assert type(task.model[0]) is nn.Linear


def test_mixouts_objective_draws_anew_in_each_step_and_trains_through_the_mask():
    task = Examples(net(3, 2, dtype=DOUBLE), drawn(8, 3), torch.zeros(8, dtype=torch.long))
    handle = own(task.model)
    loss, generator = mixed(8, 0.5, "element")(handle, task), torch.Generator().manual_seed(0)
    handle.load({name: w + 1 for name, w in handle.start.items()})
    patterns = set()
    for step in range(4):
        task.model.zero_grad()
        loss(generator, step)[0].backward()
        patterns.add(tuple((handle.parameters["0.weight"].grad != 0).flatten().tolist()))
    assert len(patterns) > 1


def test_bad_dials_of_mixout():
    handle = own(examples().model)
    for p, grain in ((1.5, "element"), (0.5, "row")):
        with (
            pytest.raises(ValueError, match=r"expected p in 0 \.\. 1, and element or column"),
            mixout(handle, p, grain, torch.Generator()),
        ):
            pass


def test_targets_are_ends_of_names():
    from weights_toys import tokens

    model = tokens().model
    assert len(targeted(model)) == 14  # no head, which is tied to the embedding
    assert [name.split(".")[-1] for name in targeted(model, ("mlp.up_proj",))] == ["up_proj"] * 2
    with pytest.raises(ValueError, match="expected ends of names"):
        targeted(model, ("p_proj",))
