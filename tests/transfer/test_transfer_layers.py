"""Layers that know regions: plain ones where there is no mask, and blind to what lies outside where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from steer.transfer import InstanceNorm, MaskedConv, feathered
from steer.transfer.layers import dilated, eroded, fresh, max_pool
from steer.transfer.losses import gram, gram_distance, moment_distance, sliced_distance


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def square(side: int = 12, low: int = 3, high: int = 8) -> Tensor:
    mask = torch.zeros(1, 1, side, side)
    mask[..., low:high, low:high] = 1
    return mask


def conv(**options) -> MaskedConv:
    torch.manual_seed(0)
    return MaskedConv(2, 3, **options).requires_grad_(False)


def test_conditional_instance_norm_takes_ids_and_pairs():
    torch.manual_seed(0)
    x, layer = normal(3, 4, 5, 5), InstanceNorm(4, styles=6)
    torch.nn.init.normal_(layer.gamma)
    ids = torch.tensor([5, 0, 5])
    by_id, by_pair = layer(x, ids), InstanceNorm(4, styles=0)(x, (layer.gamma[ids], layer.beta[ids]))
    assert torch.equal(by_id, by_pair)
    for k, style in enumerate(ids):
        torch.testing.assert_close(by_id[k], F.instance_norm(x[k : k + 1], weight=layer.gamma[style])[0])
    torch.testing.assert_close(InstanceNorm(4)(x), F.instance_norm(x))


@pytest.mark.parametrize(
    ("styles", "given", "message"),
    [
        (0, None, "no styles of its own"),
        (2, None, "name one for each sample"),
        (2, torch.tensor([2]), "ids from 0 to 1"),
        (1, (torch.ones(1, 3), torch.ones(1, 4)), "expected"),
    ],
)
def test_styles_that_are_not_there_are_refused(styles, given, message):
    with pytest.raises(ValueError, match=message):
        InstanceNorm(4, styles)(normal(1, 4, 5, 5), given)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"kernel": 9}, {"expand": 2}])
def test_a_mask_of_ones_is_a_plain_convolution(options):
    layer, x = conv(**options), normal(1, 2, 12, 12)
    y, mask = layer(x, torch.ones(1, 1, 12, 12))
    assert torch.equal(y, layer(x)[0])
    assert torch.equal(mask, torch.ones(1, 1, *y.shape[2:]))


@pytest.mark.parametrize("expand", [0, 2])
def test_a_masked_convolution_sees_the_region_and_its_ring(expand):
    layer, mask, x = conv(expand=expand), square(), normal(1, 2, 12, 12)
    y, grown = layer(x, mask)
    ring = dilated(mask, 1 + expand)
    outside = x + 100 * (1 - ring)
    assert torch.equal(layer(outside, mask)[0], y)
    assert not torch.equal(layer(x + 0.1 * (ring - mask), mask)[0], y)
    assert torch.equal(grown, dilated(mask, 1))
    inside = (..., slice(3, 8), slice(3, 8))  # one pixel from what is left out, so as in the whole picture
    torch.testing.assert_close(y[inside], layer(x)[0][inside])
    deep = (..., slice(4, 7), slice(4, 7))  # and that far from the edge of a crop
    torch.testing.assert_close(y[deep], layer(x[inside])[0][..., 1:-1, 1:-1])


def test_nothing_is_divided_by_what_is_seen():
    layer = conv()
    y, _ = layer(torch.ones(1, 2, 12, 12), square())
    corner = (layer.weight[..., 1:, 1:]).sum((1, 2, 3)) + layer.bias  # the ring's own corner sees four pixels of nine
    torch.testing.assert_close(y[0, :, 2, 2], corner)


def test_pooling_keeps_what_a_mask_covers():
    x, mask = max_pool(normal(1, 2, 12, 12), square())
    assert x.shape == (1, 2, 6, 6)
    assert torch.equal(mask, square(6, 1, 4))
    assert max_pool(x)[1] is None


def test_a_feather_stays_inside():
    mask = square()
    soft = feathered(mask, 2)
    assert torch.equal(soft[mask == 0], torch.zeros(int((mask == 0).sum())))
    torch.testing.assert_close(soft[0, 0, 5, 3:8], torch.tensor([1, 2, 3, 2, 1]) / 3)
    assert torch.equal(feathered(torch.ones(1, 1, 9, 9), 2), torch.ones(1, 1, 9, 9))
    assert torch.equal(feathered(mask, 0), mask)
    assert torch.equal(eroded(mask, 1), square(12, 4, 7))
    with pytest.raises(ValueError, match="feather = -1"):
        feathered(mask, -1)


def test_a_mask_comes_to_the_size_of_features():
    assert fresh(None, normal(1, 2, 6, 6)) is None
    covered = fresh(square(12, 4, 10), normal(1, 2, 3, 3))
    torch.testing.assert_close(covered[0, 0], torch.tensor([[0, 0, 0], [0, 1, 0.5], [0, 0.5, 0.25]]))


def test_distances_are_those_of_the_crop():
    x, y, mask = [normal(1, 4, 12, 12)], [normal(1, 4, 12, 12, seed=1)], square()
    crop = [x[0][..., 3:8, 3:8]]
    torch.testing.assert_close(gram(x[0], mask), gram(crop[0]))
    for distance in (moment_distance, gram_distance):
        torch.testing.assert_close(distance(x, y, mask), distance(crop, y))
        torch.testing.assert_close(distance(x, x), torch.zeros(1))
        assert distance(x, y) > 0


def test_sliced_distance_of_a_shift_is_the_mean_length_of_its_projections():
    picture, g = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0)), torch.Generator
    assert sliced_distance(picture, picture, g().manual_seed(0)) == 0
    moved = sliced_distance(picture, picture + 0.2, g().manual_seed(0), projections=4000)
    expected = 0.2 * 3**0.5 / 2  # the mean of |cos| over the sphere is a half
    assert moved == pytest.approx(expected, rel=0.03)
    mask = square()[0]
    inside = sliced_distance(picture, picture, g().manual_seed(0), mask, mask)
    assert inside == 0
    with pytest.raises(ValueError, match="no pixel inside"):
        sliced_distance(picture, picture, g().manual_seed(0), 0 * mask)
