"""Statistics, instance normalization, AdaIN and colour matching: equal to torch, to formulas, to crops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from steer.transfer import adain, covariance, instance_norm, match_covariance, moments
from steer.transfer.statistics import EPS


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def window(x: Tensor) -> Tensor:
    """A mask of rows 2 to 5 and columns 1 to 5."""
    mask = torch.zeros(1, 1, *x.shape[2:])
    mask[..., 2:6, 1:6] = 1
    return mask


X, Y = 3 * normal(2, 4, 8, 8) + 1, 0.5 * normal(2, 4, 6, 10, seed=1) - 2


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_instance_norm_is_torchs(dtype, within):
    x, gamma, beta = X.to(dtype), normal(4, seed=2, dtype=dtype), normal(4, seed=3, dtype=dtype)
    ours = instance_norm(x, gamma[:, None, None], beta[:, None, None])
    assert (ours - F.instance_norm(x, weight=gamma, bias=beta)).abs().max() < within


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_instance_norm_does_not_see_contrast(scale):
    assert (instance_norm(scale * X + 3) - instance_norm(X)).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float(dtype):
    """A sum of 4096 values of 100 is no number of float16."""
    x = (100 + normal(1, 1, 64, 64)).to(dtype)
    assert moments(x).mean.dtype == torch.float32
    assert moments(x, mask=torch.ones(1, 1, 64, 64)).mean.item() == pytest.approx(x.double().mean().item(), rel=1e-4)
    assert adain(x, x).dtype == dtype


def test_adain_gives_the_moments_of_the_style():
    out, x, y = moments(adain(X, Y)), moments(X), moments(Y)
    assert (out.mean - y.mean).abs().max() < 1e-8
    assert (out.var.sqrt() - (y.var + EPS).sqrt() * (x.var / (x.var + EPS)).sqrt()).abs().max() < 1e-8
    assert (out.var.sqrt() - y.var.sqrt()).abs().max() < 1e-4  # where variances are 0.1 and more


def test_a_constant_channel_comes_out_at_the_styles_mean():
    x = X.clone()
    x[:, 1] = 7
    out = adain(x, Y)
    assert (out[:, 1] - moments(Y).mean[:, 1]).abs().max() < 1e-8


def test_strength_blends_and_zero_changes_nothing():
    assert torch.equal(adain(X, Y, alpha=0.0), X)
    torch.testing.assert_close(adain(X, Y, alpha=0.25), 0.75 * X + 0.25 * adain(X, Y))


def test_a_mask_counts_as_a_crop():
    mask, inside = window(X), (..., slice(2, 6), slice(1, 6))
    for masked, cropped in zip(moments(X, mask=mask), moments(X[inside])):
        torch.testing.assert_close(masked, cropped, rtol=0, atol=1e-12)
    out = adain(X, Y, mask=mask, style_mask=window(Y))
    torch.testing.assert_close(out[inside], adain(X[inside], Y[inside]), rtol=0, atol=1e-12)
    assert torch.equal(out[mask.expand_as(X) == 0], X[mask.expand_as(X) == 0])
    torch.testing.assert_close(instance_norm(X, mask=mask)[inside], instance_norm(X[inside]), rtol=0, atol=1e-12)
    torch.testing.assert_close(covariance(X, mask)[1], covariance(X[inside])[1], rtol=0, atol=1e-12)


def test_a_mask_of_ones_is_no_mask_and_an_empty_one_no_change():
    ones = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    torch.testing.assert_close(adain(X, Y, mask=ones), adain(X, Y), rtol=0, atol=1e-12)
    assert torch.equal(adain(X, Y, mask=~ones), X)


def test_weights_count_as_repetitions():
    """Half of a pixel's weight on each of two equal pixels is one pixel of weight one."""
    x = normal(1, 2, 1, 3)
    twice = torch.cat([x, x[..., :1]], -1)
    weights = torch.tensor([0.5, 1, 1, 0.5])[None, None, None]
    for one, other in zip(moments(twice, mask=weights), moments(x)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_tokens_are_an_axis_too():
    """(rows, heads, tokens, d) over tokens is (rows heads, d, tokens, 1) over space."""
    q, reference = normal(2, 3, 16, 4), normal(1, 3, 9, 4, seed=1)
    mask = (normal(2, 1, 16, 1, seed=2) > 0).double()
    found = adain(q, reference, 0.7, mask, dim=-2)
    flat = [t.mT.reshape(6, -1, t.shape[2], 1) for t in (q, reference.expand(2, -1, -1, -1), mask.expand(2, 3, 16, 1))]
    spatial = adain(flat[0], flat[1], 0.7, flat[2])
    torch.testing.assert_close(found, spatial.reshape(2, 3, 4, 16).mT, rtol=0, atol=1e-12)


def test_colours_are_matched():
    mask = window(X)
    out = match_covariance(X, Y, mask)
    (mean, cov), (goal, theirs) = covariance(out, mask), covariance(Y)
    assert (mean - goal).abs().max() < 1e-8
    assert (cov - theirs).abs().max() < 1e-4
    torch.testing.assert_close(match_covariance(X, X), X, rtol=0, atol=1e-8)


def test_a_picture_of_one_colour_can_be_matched():
    flat = torch.full((1, 3, 8, 8), 0.5)
    assert match_covariance(flat, torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))).isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moments(X, mask=torch.ones(8, 8)), "mask has shape"),
        (lambda: moments(X, mask=torch.ones(1, 1, 1, 8)), "expected x's lengths"),
        (lambda: moments(X, mask=torch.ones(3, 1, 8, 8)), "mask has shape"),
        (lambda: adain(X, Y[:, :2]), "y has shape"),
        (lambda: adain(X, Y[0]), "y has shape"),
        (lambda: adain(X[:1], Y), "y has shape"),
        (lambda: adain(X, Y, style_mask=torch.zeros(1, 1, 6, 10)), "nothing in it"),
        (lambda: match_covariance(X, Y[:, :3]), "4 channels and y 3"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
