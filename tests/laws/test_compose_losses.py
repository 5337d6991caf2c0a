"""Losses of attention maps against values by hand, in float64."""

import math

import pytest
import tiny
import torch

from steer.diffusion.controllers.compose import losses


def exact(*maps):
    """(1, maps, h, w) in float64."""
    return torch.tensor(maps, dtype=torch.float64)[None]


def near(found, *expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


LEFT, RIGHT = [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]


def test_shares_of_attention_are_a_softmax_over_tokens():
    shares = losses.token_softmax(exact([[0.02]], [[0.01]], [[0.0]]), 100.0)
    total = math.exp(2) + math.exp(1) + 1
    near(shares.flatten(), math.exp(2) / total, math.exp(1) / total, 1 / total)


def test_the_blur_is_a_gaussian():
    spot = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    spot[0, 0, 2, 2] = 1
    side = math.exp(-2) / (1 + 2 * math.exp(-2))
    middle = 1 - 2 * side
    near(losses.blur(spot)[0, 0, 2, 1:4], side * middle, middle**2, side * middle)


def test_excite_is_the_least_attended_peak():
    near(losses.excite(exact([[0.8, 0.1], [0.1, 0.0]], [[0.1, 0.3], [0.0, 0.2]])), 0.7)


def test_separate_adds_what_is_shared():
    maps = exact([[0.8, 0.1], [0.1, 0.0]], [[0.1, 0.3], [0.0, 0.2]])
    near(losses.shared(maps), 0.2 / 1.6)
    near(losses.separate(maps), (0.7 + 0.125) / 2)
    near(losses.shared(exact(LEFT, LEFT, RIGHT)), 0.5 / 3)
    near(losses.separate(exact(LEFT)), 0.0)


def test_retention_compares_with_the_box():
    masks = losses.box_masks([(0.0, 0.0, 0.5, 1.0)], 2, 2)
    assert masks.tolist() == [[[1, 0], [1, 0]]]
    near(losses.retention(exact([[0.5, 0.5], [0.0, 0.0]]), masks), 1 - 0.5 / 3)
    near(losses.retention(exact([[1.0, 0.0], [1.0, 0.0]]), masks), 0.5)


def test_overlap_and_mixing():
    near(losses.mixing(exact([[1.0, 0.5], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]])), 0.5 / 2.5)
    near(losses.mixing(exact(LEFT, RIGHT)), 0.0)
    near(losses.mixing(exact(LEFT, LEFT, LEFT)), 1.5)
    scaled = 3 * exact(LEFT) + 2  # min-max normalised: scale and offset do not count
    near(losses.overlap(scaled, exact(LEFT)).flatten(), 0.5)


def test_attribute_is_one_minus_overlap():
    near(losses.attribute(exact(LEFT, LEFT), exact(LEFT, RIGHT)), 0.5 + 1.0)


def test_missing_wants_every_entity_to_stand_out():
    near(losses.missing(exact(LEFT, RIGHT)), 0.0)
    nearly = exact([[0.3, 0.2], [0.2, 0.3]], [[0.25, 0.25], [0.25, 0.25]])
    near(losses.missing(nearly), 2 * (1 - 1000 / 256 * 0.2))
    near(losses.gaps(nearly[:, :1], nearly[:, 1:], 100.0).flatten(), 100 / 256 * 0.2)
    near(losses.missing(exact([[0.3, 0.1], [0.0, 0.0]])), 0.7)  # nobody to stand out from


def test_missing_has_the_papers_constant_on_its_grid_and_the_same_threshold_on_any():
    maps = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=tiny.generator())
    hat, expected = 1000 * maps / maps.sum((-1, -2), keepdim=True), []
    for row in hat:
        g = [sum(max(0.0, float((a - b).max())) for j, b in enumerate(row) if j != i) for i, a in enumerate(row)]
        expected.append(sum(max(0.0, 1 - one / 2) for one in g))
    near(losses.missing(maps), *expected)
    larger = maps.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(losses.missing(larger), losses.missing(maps))


@pytest.mark.parametrize(("kind", "expected"), [("left of", -8.0), ("right of", 8.0), ("above", -4.0), ("below", 4.0)])
def test_spatial_compares_centres_in_units_of_a_16_grid(kind, expected):
    one, other = torch.zeros(2, 4, 4, dtype=torch.float64)
    one[1, 0], other[2, 2] = 1.0, 1.0  # (x, y) = (0, 1) and (2, 2) on a grid of 4
    near(losses.spatial(torch.stack([one, other])[None], [(kind, 0, 1)]), 1 / (1 + math.exp(-expected)))


@pytest.mark.parametrize("box", [(0.5, 0.0, 0.5, 1.0), (-0.1, 0.0, 0.5, 1.0), (0.0, 0.0, 0.01, 0.01)])
def test_boxes_lie_in_the_picture(box):
    with pytest.raises(ValueError, match="expected 0 <= left < right <= 1"):
        losses.box_masks([box], 4, 4)
