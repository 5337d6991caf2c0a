"""Sparse MeZO: its estimate, what it leaves alone, and that both passes see one mask and one batch."""

import pytest
import torch
from torch import nn
from weights_toys import examples

from steer.training import Run, fit, tune
from steer.training.weights.attach import weights
from steer.training.weights.losses import supervised
from steer.training.weights.methods import METHODS
from steer.training.weights.zeroth import Mezo


def test_the_estimate_is_the_gradient_under_the_mask():
    """Of a quadratic, n = 10 of 20 entries on, over 2,000 seeds: within twice sqrt((n + 1) / 2000), and 0 elsewhere."""
    generator = torch.Generator().manual_seed(0)
    a, b, start = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((20, 20), (20,), (20,)))
    a = a @ a.T / 20
    w, mask = nn.Parameter(start.clone()), torch.arange(20) % 2 == 0
    mezo, total = Mezo({"w": w}, {"w": mask}, lr=1.0, eps=1e-3), torch.zeros(20, dtype=torch.float64)
    for _ in range(2000):
        mezo.step(lambda: w @ a @ w / 2 + b @ w)
        total += start - w.detach()
        w.data.copy_(start)
    wanted, found = torch.where(mask, a @ start + b, 0), total / 2000
    assert (found[~mask] == 0).all()
    assert (found - wanted).norm() < 2 * (11 / 2000) ** 0.5 * wanted.norm()


def test_one_step_by_hand():
    """w - lr (L(w + eps z) - L(w - eps z)) / (2 eps) z with the z of its seed, another in each step."""
    w = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    mezo, draws = Mezo({"w": w}, lr=0.1, eps=0.01, seed=7), []

    def closure():
        draws.append(w.detach().clone())
        return (w**3).sum()

    for step in range(2):
        before = w.detach().clone()
        z = torch.randn(3, generator=torch.Generator().manual_seed((7 << 32) + step), dtype=torch.float64)
        mezo.step(closure)
        plus, minus = before + 0.01 * z, before - 0.01 * z
        assert torch.equal(draws[-2], plus)
        assert torch.equal(draws[-1], minus)
        slope = ((plus**3).sum() - (minus**3).sum()) / 0.02
        assert torch.allclose(w, before - 0.1 * slope * z, rtol=1e-14)


def test_what_is_masked_off_stays_bit_for_bit_and_a_step_has_one_mask():
    """Of the unperturbed weights: a perturbed weight may cross the threshold, and must not leave the mask for that."""
    w = nn.Parameter(torch.cat([torch.linspace(-1, 1, 40), torch.tensor([-0.0])]))
    start, asked, moved = w.detach().clone(), [], []

    def small(parameters):
        asked.append((parameters["w"].abs() <= 0.5) & (parameters["w"] != 0))
        return {"w": asked[-1]}

    mezo = Mezo({"w": w}, small, lr=1e-3, eps=0.3)

    def closure():
        moved.append((w != now).clone())
        return w.square().sum()

    for _ in range(200):
        now = w.detach().clone()
        mezo.step(closure)
        assert torch.equal(moved[-1], moved[-2])
        assert torch.equal(moved[-1], asked[-1] & moved[-1])
        assert torch.equal(w[~asked[-1]], now[~asked[-1]])
    never = ~torch.stack(asked).any(0)
    assert never.any()
    assert torch.equal(w[never].view(torch.int32), start[never].view(torch.int32))
    assert len(asked) == 200


@pytest.mark.parametrize("static", [True, False])
def test_both_passes_of_a_fit_see_one_batch(static):
    task, seen = examples(), []
    plain = task.batch
    task.batch = lambda generator, size: seen.append(plain(generator, size)) or seen[-1]
    tuned = tune(task, METHODS["sparse_mezo"](static=static, lr=1e-3), Run(steps=3))
    assert len(seen) == 6
    assert all(torch.equal(a[0], b[0]) for a, b in zip(seen[::2], seen[1::2]))
    assert not torch.equal(seen[0][0], seen[2][0])
    assert all(p.grad is None for p in tuned.handle.parameters.values())


def test_it_lowers_a_loss_without_a_gradient():
    task = examples()
    handle = weights()(task)
    mezo = Mezo(handle.parameters, lr=0.05)
    log = fit(handle, supervised(64)(handle, task), mezo, Run(steps=150))
    assert sum(row["loss"] for row in log[-20:]) < 0.9 * sum(row["loss"] for row in log[:20])


def test_bad_input():
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="call step\\(closure\\)"):
        Mezo({"w": w}).step()
    with pytest.raises(ValueError, match="eps = 0: expected a distance above 0"):
        Mezo({"w": w}, eps=0)
