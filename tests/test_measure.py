"""What results are judged by, against plain definitions."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from steer import measure
from steer.rewards import Judge
from steer.zoo.data import compose, glyphs, split


@pytest.fixture(scope="module")
def pictures():
    """60 real pictures of all kinds, shuffled."""
    real = compose(glyphs()[0][split()])
    return real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:60]]


@pytest.mark.parametrize("sizes", [(7, 12), (12, 7), (9, 9)])
def test_kid_is_the_unbiased_estimate_for_any_two_sizes(pictures, sizes):
    a, b = pictures[: sizes[0]], pictures[20 : 20 + sizes[1]].flip(1)
    x, y = (Judge().embed_images(part).double() for part in (a, b))

    def mean(pairs):
        values = [float((one @ other + 1) ** 3) for one, other in pairs]
        return sum(values) / len(values)

    same = [mean(itertools.permutations(rows, 2)) for rows in (x, y)]
    assert measure.kid(a, b) == pytest.approx(1000 * (sum(same) - 2 * mean(itertools.product(x, y))), rel=1e-6)


def test_kid_of_pairs_leaves_out_what_they_share(pictures):
    """One style of every name against another: one distribution, but nearer than that if a name meets itself."""
    seen = compose(glyphs()[0][:2, :100].flatten(0, 1)).unflatten(0, (2, 100))
    generator, names, found = torch.Generator().manual_seed(0), torch.arange(100), []
    for _ in range(6):
        style = torch.randint(2, (100,), generator=generator)
        one, other = seen[style, names], seen[1 - style, names]
        found.append([measure.kid(one, other, paired=True), measure.kid(one, other)])
    paired, unpaired = torch.tensor(found).mean(0)
    assert abs(paired) < 10  # three standard errors
    assert unpaired < -50
    with pytest.raises(ValueError, match="as many of both"):
        measure.kid(pictures[:5], pictures[:6], paired=True)


def test_kid_is_that_of_torchmetrics_where_that_is_defined(pictures):
    a, b = pictures[:30], pictures[30:].flip(1)
    features = (Judge().embed_images(part).double() for part in (a, b))
    assert measure.kid(a, b) == pytest.approx(1000 * float(poly_mmd(*features, degree=3, gamma=1.0)), rel=1e-6)


def test_kid_tells_distributions_apart(pictures):
    alike, apart = measure.kid(pictures[:20], pictures[20:]), measure.kid(pictures[:20], pictures[20:].flip(1))
    assert abs(alike) < 0.2 * apart


def test_kid_needs_two_pictures(pictures):
    with pytest.raises(ValueError, match="1 pictures against 5: expected at least two"):
        measure.kid(pictures[:1], pictures[:5])


def test_diversity_is_the_mean_distance_of_pairs(pictures):
    three = pictures[:6].unflatten(0, (2, 3))
    found = measure.diversity(three)
    for k, features in enumerate(Judge().embed_images(pictures[:6]).unflatten(0, (2, 3))):
        distances = [1 - float(a @ b) for a, b in itertools.combinations(features, 2)]
        assert float(found[k]) == pytest.approx(sum(distances) / 3, abs=1e-5)
    assert torch.allclose(measure.diversity(pictures[:1, None].repeat(1, 4, 1, 1, 1)), torch.zeros(1), atol=1e-5)
    with pytest.raises(ValueError, match="at least 2"):
        measure.diversity(three[:, :1])


def test_the_rank_of_a_name():
    scorer = SimpleNamespace(embed_images=lambda images: images, embed_texts=lambda texts: torch.eye(3))
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.1, 0.3]])
    ranks = measure.name_rank(scores, ["fox", "bee", "owl"], ["fox", "bee", "owl"], scorer)
    assert ranks.tolist() == [0, 1, 0]


def test_an_interval_covers_its_mean_and_narrows():
    values = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    few, many = measure.interval(values[:25]), measure.interval(values)
    assert many.mean == pytest.approx(float(values.mean()), abs=1e-6)
    assert few.low < few.mean < few.high
    standard_error = float(values.mean(1).std()) / 20
    assert many.high - many.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    with pytest.raises(ValueError, match="at least two"):
        measure.interval(values[:1])
