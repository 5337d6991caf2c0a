"""Random bits and what is drawn with them: published vectors, laws of resampling, and steer's own picks."""

import pytest
import torch
from steer_kernels import philox
from steer_kernels.resample import RULES, drawn, resample
from torch.testing import assert_close

from steer import pick

# Random123, kat_vectors: philox4x32, 10 rounds; counter, key, words
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_words_are_the_published_ones(counter, key, words):
    c0, c1 = torch.tensor(counter[:2])
    assert torch.stack(philox.rounds(c0, c1, *counter[2:], key[1] << 32 | key[0])).tolist() == list(words)


def test_normal_numbers_have_the_moments_of_the_normal():
    z = philox.normal(torch.arange(4), 50_001, seed=5, step=3)
    count = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z.pow(power).mean() - moment) < 5 * (variance / count) ** 0.5
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 5 / count**0.5
    assert abs((z[0] * z[1]).mean()) < 5 / 50_001**0.5


def test_philox_names_what_it_cannot_take():
    with pytest.raises(ValueError, match=r"expected \(b,\) int64"):
        philox.philox(torch.zeros(2), 4, 0)
    with pytest.raises(ValueError, match="step -1"):
        philox.philox(torch.arange(2), 4, 0, step=-1)


def weights() -> torch.Tensor:
    logw = 2 * torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    logw[0, 3:], logw[1], logw[2, ::2], logw[3] = -torch.inf, -torch.inf, -torch.inf, 0.5
    return logw


@pytest.mark.parametrize("k", [1, 3, 9])
def test_top_k_is_the_pick(k):
    assert torch.equal(resample(weights(), "top_k", k=k), pick.top_k(k)(weights(), torch.Generator()).index)


def test_systematic_is_the_pick_given_its_uniforms():
    for seed in range(20):
        uniforms = torch.rand(6, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        expected = pick.systematic(weights(), torch.Generator().manual_seed(seed)).index
        assert torch.equal(resample(weights(), "systematic", uniforms=uniforms), expected)


@pytest.mark.parametrize("rule", RULES)
def test_impossible_particles_never_continue(rule):
    for seed in range(20):
        index = resample(weights(), rule, k=9, seed=seed)
        assert (index[0] < 3).all()
        assert (index[1] == 0).all()
        assert (index[2] % 2 == 1).all()
        nan = torch.where(torch.isneginf(weights()), torch.nan, weights())
        assert torch.equal(resample(nan, rule, k=9, seed=seed), index)


@pytest.mark.parametrize("rule", ["systematic", "gumbel"])
def test_children_are_as_many_as_weights_say(rule):
    logw = torch.tensor([[0.0, 1.0, -2.0, 0.5]])
    p, runs = torch.softmax(logw[0], 0), 4000
    index = resample(logw.expand(runs, 4), rule, seed=1)
    assert_close(index.flatten().bincount(minlength=4) / (4 * runs), p, atol=5 * (0.25 / (4 * runs)) ** 0.5, rtol=0)
    if rule == "systematic":
        children = torch.stack([row.bincount(minlength=4) for row in index])
        assert ((children - 4 * p).abs() < 1).all()


def test_draws_of_a_step_are_their_own():
    logw = torch.zeros(3, 30)
    a, b = resample(logw, "gumbel", seed=1, step=1), resample(logw, "gumbel", seed=1, step=2)
    assert torch.equal(a, resample(logw, "gumbel", seed=1, step=1))
    assert not torch.equal(a, b)
    assert not torch.equal(a[0], a[1])
    assert torch.equal(a, resample(logw, "gumbel", uniforms=drawn(3, 30, "gumbel", 1, 1, logw.device)))


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("best", {}, "expected log-weights"),
        ("top_k", {"k": 5}, "5 of 4 particles"),
        ("top_k", {"uniforms": torch.zeros(2, 1)}, "expected none"),
        ("systematic", {"uniforms": torch.zeros(2, 4)}, r"expected \(2, 1\)"),
        ("gumbel", {"uniforms": torch.zeros(2, 4)}, r"expected \(2, 4, 4\)"),
        ("gumbel", {"seed": -1}, "seed -1"),
    ],
)
def test_resample_names_what_does_not_fit(rule, options, message):
    with pytest.raises(ValueError, match=message):
        resample(torch.zeros(2, 4), rule, **options)
