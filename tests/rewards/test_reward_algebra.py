"""The call's checks, the algebra, z-scores and the cache, on rewards of which every value is known."""

from collections import OrderedDict
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer.rewards import Cached, Reward, Scaled, Sum, ZScored


@dataclass(frozen=True)
class Red(Reward):
    """The red channel of the first pixel; remembers the sizes of the chunks it was given."""

    batch: int | None = None
    chunks: list = field(default_factory=list, repr=False, compare=False)
    differentiable = True

    def score(self, images, prompts):
        self.chunks.append(len(images))
        return images[:, 0, 0, 0]


@dataclass(frozen=True)
class Length(Reward):
    """The length of the prompt."""

    def score(self, images, prompts):
        return torch.tensor([len(prompt) for prompt in prompts])


def reds(*values):
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()


def test_the_algebra_is_arithmetic():
    images, prompts = reds(0.1, 0.5, 0.9), ["a", "bb", "ccc"]
    combined = 0.5 * Red() + Length() * 2 - Red() - (-Length())
    expected = 0.5 * images[:, 0, 0, 0] + 3 * torch.tensor([1.0, 2.0, 3.0]) - images[:, 0, 0, 0]
    torch.testing.assert_close(combined(images, prompts), expected)
    assert combined(images, prompts).dtype == torch.float32
    assert len(combined.rewards) == 4, "sums of sums are one sum"


def test_a_combination_is_a_value():
    one, two = 0.5 * Red() + Length(), Scaled(0.5, Red()) + Length()
    assert one == two
    assert hash(one) == hash(two)
    assert repr(one) == "Sum(rewards=(Scaled(weight=0.5, reward=Red(batch=None)), Length()))"


def test_flags_follow_the_parts():
    @dataclass(frozen=True)
    class Latent(Red):
        needs_decode = False

    assert (2 * Red() + Red().cached()).differentiable
    assert not (Red() + Length()).differentiable
    assert not (-Latent()).needs_decode
    assert Red().cached().pointwise
    assert not (Red() + Red().zscored()).pointwise
    with pytest.raises(ValueError, match="all on pictures or all on latents"):
        Latent() + Red()
    torch.testing.assert_close(Latent()(torch.full((2, 4, 1, 1), -7.0), ["", ""]), torch.tensor([-7.0, -7.0]))


@pytest.mark.parametrize("wrong", [lambda: Red() * Red(), lambda: Red() + 1, lambda: Red() - 1, lambda: "2" * Red()])
def test_only_numbers_scale_and_only_rewards_add(wrong):
    with pytest.raises(TypeError):
        wrong()


def test_weights_are_finite():
    with pytest.raises(ValueError, match="weight nan"):
        float("nan") * Red()


def test_chunks_cover_the_call_in_order():
    images, reward = reds(0.1, 0.2, 0.3, 0.4, 0.5), Red(batch=2)
    assert torch.equal(reward(images, [""] * 5), images[:, 0, 0, 0])
    assert reward.chunks == [2, 2, 1]
    assert reward(images[:0], []).shape == (0,)
    with pytest.raises(ValueError, match="batch = 0"):
        Red(batch=0)(images, [""] * 5)


def test_a_broken_picture_scores_nan_and_spoils_no_other():
    images = reds(0.1, 0.2, 0.3)
    images[1, 2, 3, 3] = torch.nan
    assert torch.equal(Red()(images, [""] * 3).isnan(), torch.tensor([False, True, False]))


def test_gradients_flow_where_announced_and_only_there():
    images = reds(0.1, 0.2).requires_grad_()
    assert (Red() + Red())(images, ["", ""]).requires_grad
    assert not (Red() + Length())(images, ["", ""]).requires_grad


def test_a_score_of_the_wrong_shape_is_named():
    @dataclass(frozen=True)
    class Mean(Reward):
        def score(self, images, prompts):
            return images.mean()

    with pytest.raises(ValueError, match=r"Mean\(\) returned shape \(\); expected one score a picture: \(2,\)"):
        Mean()(reds(0.1, 0.2), ["", ""])


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (reds(0.1, 0.2), ["a"], "2 pictures came with 1 prompts"),
        (reds(0.1), "a", "bare string 'a'"),
        (reds(0.1)[0], ["a"], r"shape \(3, 4, 4\); expected \(b, 3, h, w\)"),
        (reds(0.1)[:, :1], ["a"], r"expected \(b, 3, h, w\)"),
        (reds(-1.0), ["a"], r"from -1 to -1; expected \[0, 1\]: use \(images \+ 1\) / 2"),
        (reds(0.1, 1.01), ["a", "b"], "from 0.1 to 1.01"),
        (reds(0.1).byte(), ["a"], "/ 255"),
        ([[0.1]], ["a"], "images are a list"),
    ],
)
def test_what_comes_in_is_checked(images, prompts, message):
    with pytest.raises(ValueError, match=message):
        Red()(images, prompts)


def test_rounding_beyond_the_range_passes():
    assert Red()(reds(-0.0005, 1.0005), ["", ""]).tolist() == pytest.approx([-0.0005, 1.0005])


def test_zscores_by_hand():
    images = reds(0.1, 0.5, 0.3, 0.9, 0.7)
    z = Red().zscored()(images, ["a", "b", "a", "b", "c"])
    assert z.tolist() == pytest.approx([-1, -1, 1, 1, 0], abs=1e-5)


def test_zscores_without_spread_are_zero_and_failures_stay_failures():
    images = reds(0.3, 0.3, 0.3000001, 0.1, 0.2, 0.4)  # the third differs by rounding only
    images[4] = torch.nan
    z = ZScored(Red())(images, ["a"] * 3 + ["b"] * 3)
    assert z.tolist() == pytest.approx([0, 0, 0, -1, float("nan"), 1], abs=1e-5, nan_ok=True)


@given(
    scores=st.lists(st.integers(0, 20), min_size=2, max_size=12),
    weight=st.sampled_from([0.01, 0.3, 7.0]),
    groups=st.integers(1, 3),
)
def test_zscores_do_not_depend_on_units(scores, weight, groups):
    images = reds(*(score / 20 for score in scores))
    prompts = [str(k % groups) for k in range(len(scores))]
    z = Red().zscored()(images, prompts)
    torch.testing.assert_close(z, (weight * Red()).zscored()(images, prompts), atol=1e-3, rtol=0)
    for group in set(prompts):
        own = z[[prompt == group for prompt in prompts]]
        assert own.mean().abs() < 1e-4
        assert own.square().mean().item() == pytest.approx(float(len(set(own.tolist())) > 1), abs=1e-3)


def test_zscores_have_a_gradient_even_without_spread():
    images = reds(0.3, 0.3, 0.1, 0.4).requires_grad_()
    Red().zscored()(images, ["a", "a", "b", "b"])[3].backward()
    assert images.grad.isfinite().all()


def test_a_cache_scores_each_pair_once():
    inner, images = Red(), reds(0.1, 0.2, 0.1, 0.1)
    reward = inner.cached()
    assert torch.equal(reward(images, ["a", "a", "a", "b"]), images[:, 0, 0, 0])
    assert inner.chunks == [3], "two equal pictures with one prompt are one"
    reward(images.flip(0), ["b", "a", "a", "a"])
    assert inner.chunks == [3]
    assert reward(reds(0.9, 0.1), ["a", "a"]).tolist() == pytest.approx([0.9, 0.1])
    assert inner.chunks == [3, 1]
    assert isinstance(reward.store, OrderedDict)
    assert repr(reward) == "Cached(reward=Red(batch=None), size=4096)"


def test_a_cache_forgets_the_least_recently_used():
    inner = Red()
    reward = Cached(inner, size=2)
    for value in (0.1, 0.2, 0.1, 0.3):
        reward(reds(value), ["a"])
    assert (len(reward.store), len(inner.chunks)) == (2, 3)
    reward(reds(0.1), ["a"])
    assert len(inner.chunks) == 3, "0.1 was used after 0.2"
    reward(reds(0.2), ["a"])
    assert len(inner.chunks) == 4


def test_a_cache_steps_aside_for_gradients():
    images, reward = reds(0.1, 0.2), Red().cached()
    reward(images, ["", ""])
    assert reward(images.requires_grad_(), ["", ""]).requires_grad


def test_what_compares_pictures_cannot_be_cached():
    with pytest.raises(ValueError, match=r"cached\(\)\.zscored\(\)"):
        Sum((Red().zscored(), Red())).cached()
    with pytest.raises(ValueError, match="size >= 1"):
        Red().cached(0)
