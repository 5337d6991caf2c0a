"""The smooth size of a JPEG file: it orders pictures as the files do, and has a gradient that makes them smaller."""

import pytest
import torch
from scipy.stats import spearmanr

from steer.rewards import Compressibility
from steer.rewards.jpeg import SmoothCompressibility, _cosines
from steer.zoo.data import compose, glyphs


def pictures() -> torch.Tensor:
    return compose(glyphs()[0][:, ::12].flatten(0, 1))


def test_the_transform_is_orthonormal():
    torch.testing.assert_close(_cosines() @ _cosines().T, torch.eye(8, dtype=torch.float64))


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_it_orders_pictures_as_their_files_do(quality):
    seen = pictures()
    prompts = [""] * len(seen)
    smooth, real = SmoothCompressibility(quality)(seen, prompts), Compressibility(quality)(seen, prompts)
    assert spearmanr(smooth.numpy(), real.numpy()).statistic > 0.9


def test_its_gradient_makes_files_smaller():
    seen = pictures()[:8]
    prompts = [""] * len(seen)
    x = seen.clone().requires_grad_()
    for _ in range(20):
        (slope,) = torch.autograd.grad(SmoothCompressibility()(x, prompts).sum(), x)
        x = (x + 0.005 * slope.sign()).clamp(0, 1).detach().requires_grad_()
    before, after = (Compressibility(75)(each.detach(), prompts) for each in (seen, x))
    assert (after > before).all()


def test_a_flat_picture_of_any_size_costs_little():
    flat = torch.full((1, 3, 20, 30), 128 / 255)
    assert -1e-3 < SmoothCompressibility()(flat, [""]).item() <= 0
    with pytest.raises(ValueError, match="whole number"):
        SmoothCompressibility(0)
