"""The two networks and `stylize`: regions are closed, borders bit-exact, and bad input is told so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steer import zoo
from steer.transfer import AdaIN, Arbitrary, adain, moments, stylize
from steer.transfer.layers import dilated, fresh
from steer.transfer.net import Encoder

SIDE = 32


def pictures(count: int, seed: int = 0, side: int = SIDE) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def made(cls: type) -> torch.nn.Module:
    torch.manual_seed(0)
    return cls(widths=(8, 8, 16)).eval().requires_grad_(False)


@pytest.fixture(params=[AdaIN, Arbitrary])
def net(request):
    return made(request.param)


CONTENT, STYLE = pictures(2), pictures(1, seed=1, side=24)
MASK = torch.zeros(1, 1, SIDE, SIDE)
MASK[..., 8:22, 6:20] = 1


def test_without_a_mask_it_is_the_formula():
    net = made(AdaIN)
    code, style = net.encoder(CONTENT)[-1], net.encoder(STYLE)[-1]
    expected = net.decoder(0.4 * code + 0.6 * adain(code, style)).clamp(0, 1)
    torch.testing.assert_close(stylize(CONTENT, STYLE, 0.6, net=net), expected)
    assert expected.std() > 1e-3


def test_no_strength_is_the_contents_own_style(net):
    """AdaIN: its reconstruction, for any style; prediction: the content as its own style."""
    torch.testing.assert_close(stylize(CONTENT, STYLE, 0.0, net=net), stylize(CONTENT, CONTENT, 0.0, net=net))
    own = stylize(CONTENT, CONTENT, 1.0, net=net)
    torch.testing.assert_close(stylize(CONTENT, STYLE, 0.0, net=net), own, rtol=0, atol=1e-5)
    assert (stylize(CONTENT, STYLE, 1.0, net=net) - own).abs().max() > 1e-3


@pytest.mark.parametrize("blend", [False, True])
def test_a_mask_of_ones_is_no_mask(net, blend):
    ones = torch.ones(1, 1, SIDE, SIDE)
    found = stylize(CONTENT, STYLE, mask=ones, style_mask=torch.ones(1, 1, 24, 24), blend=blend, net=net)
    assert (found - stylize(CONTENT, STYLE, net=net)).abs().max() < 1e-5


def test_outside_every_bit_stays_and_an_empty_mask_changes_none(net):
    found = stylize(CONTENT, STYLE, mask=MASK, net=net)
    outside = MASK.expand_as(CONTENT) == 0
    assert torch.equal(found[outside], CONTENT[outside])
    assert (found - CONTENT).abs().max() > 1e-3
    assert torch.equal(stylize(CONTENT, STYLE, mask=0 * MASK, net=net), CONTENT)


def test_the_region_is_all_that_is_seen(net):
    """Other content beyond the region's ring leaves every bit inside; blending with the content's features does not.

    The ring is that of the coarsest layers where masks are resized afresh (prediction), one pixel where they are handed
    on (the encoder).
    """
    ring = dilated(MASK, 1 if isinstance(net, AdaIN) else 9)
    other = CONTENT * ring + pictures(2, seed=5) * (1 - ring)
    inside = MASK.expand_as(CONTENT) > 0
    assert not torch.equal(other, CONTENT)
    one, two = (stylize(c, STYLE, mask=MASK, blend=False, net=net) for c in (CONTENT, other))
    assert torch.equal(one[inside], two[inside])
    one, two = (stylize(c, STYLE, mask=MASK, blend=True, net=net) for c in (CONTENT, other))
    assert not torch.equal(one[inside], two[inside])


def test_the_region_gets_the_statistics_of_the_styles_region():
    """At a mask of whole cells, what AdaIN's decoder is given has the style's moments inside, and the content's out."""

    class Given(torch.nn.Module):
        def forward(self, target: Tensor, *rest: Tensor | None) -> Tensor:
            self.target = target
            return torch.zeros_like(CONTENT)

    net, given, mask, style_mask = made(AdaIN), Given(), torch.zeros_like(MASK), torch.zeros(1, 1, 24, 24)
    mask[..., 8:24, 4:16], style_mask[..., 4:12, 8:24] = 1, 1
    code, style = net.encoder(CONTENT, mask)[-1], net.encoder(STYLE, style_mask)[-1]
    net.decoder = given
    stylize(CONTENT, STYLE, mask=mask, style_mask=style_mask, net=net)
    inside, theirs = fresh(mask, code), moments(style, mask=fresh(style_mask, style))
    torch.testing.assert_close(moments(given.target, mask=inside).mean, theirs.mean.expand(2, -1, -1, -1))
    assert torch.equal(given.target * (1 - inside), code * (1 - inside))


def test_the_decoder_sees_the_region_and_its_ring():
    decoder, mask = made(AdaIN).decoder, torch.zeros_like(MASK)
    mask[..., 8:24, 4:16] = 1
    code = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    beyond = code + 5 * (1 - dilated(fresh(mask, code), 1))
    assert torch.equal(decoder(beyond, mask), decoder(code, mask))
    assert not torch.equal(decoder(beyond), decoder(code))


def test_several_styles_are_weighed(net):
    two = [STYLE, pictures(1, seed=2)]
    one = stylize(CONTENT, two, weights=[1.0, 0.0], net=net)
    torch.testing.assert_close(one, stylize(CONTENT, STYLE, net=net))
    half = stylize(CONTENT, two, net=net)
    torch.testing.assert_close(half, stylize(CONTENT, two, weights=[0.5, 0.5], net=net))
    assert (half - one).abs().max() > 1e-4


def test_a_style_mask_is_what_is_seen_of_the_style(net):
    mask = torch.zeros(1, 1, 24, 24)
    mask[..., 4:16, 4:16] = 1
    ring = dilated(mask, 1)
    other = STYLE * ring + pictures(1, seed=7, side=24) * (1 - ring)
    assert torch.equal(*(stylize(CONTENT, s, style_mask=mask, net=net) for s in (STYLE, other)))


def test_kept_colours_take_none_from_the_style():
    """Styles that are affine maps of each other's colours look alike once they have the content's."""
    net, tint = made(AdaIN), torch.tensor([0.3, 0.6, 0.9])[:, None, None]
    plain = [stylize(CONTENT, s, net=net) for s in (STYLE, STYLE * 0.5 + 0.2)]
    kept = [stylize(CONTENT, s, keep_colour=True, net=net) for s in (STYLE, STYLE * 0.5 + 0.2)]
    assert (plain[0] - plain[1]).abs().max() > 1e-3
    torch.testing.assert_close(kept[0], kept[1], rtol=0, atol=1e-3)
    assert stylize(CONTENT, STYLE * tint, keep_colour=True, net=net).isfinite().all()


def test_the_encoder_is_normalised_and_tells_the_same():
    torch.manual_seed(0)
    encoder, seen = Encoder((8, 8, 16)), pictures(4)
    before = [f.detach() for f in encoder(seen)]
    encoder.normalise(seen)
    for old, new in zip(before, encoder(seen)):
        size = old.square().mean((0, 2, 3), keepdim=True).sqrt()
        scaled = old / size.clamp_min(size.mean() / 10)
        torch.testing.assert_close(new, scaled, rtol=1e-3, atol=1e-4)
        assert (new - old).abs().max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": CONTENT[0]}, r"content has shape \(3, 32, 32\)"),
        ({"content": 255 * CONTENT}, "expected floats in"),
        ({"content": pictures(1, side=18)}, "multiples of 4"),
        ({"content": pictures(1, side=12)}, "sides of 16"),
        ({"style": pictures(3)}, "style has shape"),
        ({"style": []}, "no style"),
        ({"style": [STYLE, STYLE], "weights": [1.0]}, "2 styles with 2 masks and 1 weights"),
        ({"weights": [0.5]}, "sum to 0.5"),
        ({"alpha": 1.5}, "alpha = 1.5"),
        ({"mask": MASK[0]}, "mask has shape"),
        ({"mask": 2 * MASK}, r"mask lies in \[0, 2\]"),
        ({"style_mask": torch.zeros(1, 1, 24, 24)}, "style mask is empty"),
        ({"mask": MASK, "feather": -1}, "feather = -1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        stylize(**{"content": CONTENT, "style": STYLE, "net": made(AdaIN), **change})


def test_missing_weights_say_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    zoo.adain_net.cache_clear()
    with pytest.raises(FileNotFoundError, match="steer world build --only emoji-adain"):
        stylize(CONTENT, STYLE)
