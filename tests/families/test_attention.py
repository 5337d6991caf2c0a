"""Laws of attention sites and edits, on tiny networks of every family that has them."""

import math

import pytest
import tiny
import tiny_families
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor

import steer
from steer.diffusion.attention import TokenMaps, attending, beside, grid, groups, probabilities, sites

DDIM, FLOW = DDIMScheduler, FlowMatchEulerDiscreteScheduler
FAMILIES = {
    "sd": (tiny.pipeline, DDIM),
    "sdxl": (tiny_families.sdxl, DDIM),
    "sd3": (tiny_families.sd3, FLOW),
    "sd35": (tiny_families.sd35, FLOW),
    "flux": (tiny_families.flux, FLOW),
    "pixart": (tiny_families.pixart, DDIM),
}
KINDS = {"sd": {"self", "cross"}, "sdxl": {"self", "cross"}, "sd3": {"joint"}, "sd35": {"joint", "self"}}
KINDS |= {"flux": {"joint"}, "pixart": {"self", "cross"}}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def made(family):
    """A pipeline, its network, and a denoiser with what it is called with: x (1, ...), a level and cond."""
    build, scheduler = FAMILIES[family]
    pipe = tiny_families.made(build, scheduler())
    size = tiny_families.SIZE.get("sd3" if family == "sd35" else family, {})
    denoiser = steer.denoiser_of(pipe, "a cat", num_inference_steps=3, generator=tiny.generator(), **size)
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return network, denoiser, (denoiser.x, denoiser.schedule[1], denoiser.cond)


def attributes(network) -> list:
    return [(sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]


def test_sites_have_the_kinds_of_their_family(family):
    network, _, _ = made(family)
    assert {site.kind for site in sites(network)} == KINDS[family]


@torch.no_grad()
def test_an_edit_that_does_nothing_changes_no_bit_and_leaves_nothing(family):
    network, denoiser, call = made(family)
    before, plain = attributes(network), denoiser(*call)
    seen = set()

    def note(ask, attend):
        seen.add(ask.site.name)
        return attend(ask)

    with attending(network, sites(network), note):
        assert torch.equal(denoiser(*call), plain)
    assert seen == {site.name for site in sites(network)}
    assert attributes(network) == before

    def fail(ask, attend):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), attending(network, sites(network), fail):
        denoiser(*call)
    assert attributes(network) == before
    assert torch.equal(denoiser(*call), plain)


@torch.no_grad()
def test_probabilities_are_those_of_the_attention(family):
    """All keys' probabilities times all values are what the picture's tokens read."""
    network, denoiser, call = made(family)

    def compare(ask, attend):
        out = attend(ask)
        if ask.site.kind == "self":
            return out
        words = probabilities(ask)
        logits = ask.query.double() @ ask.key.double().mT * (ask.scale or 1 / math.sqrt(ask.query.shape[-1]))
        if ask.mask is not None:
            logits = (
                logits + torch.zeros_like(logits).masked_fill(~ask.mask, -torch.inf)
                if (ask.mask.dtype == torch.bool)
                else logits + ask.mask
            )
        full = logits.softmax(-1)
        torch.testing.assert_close((full @ ask.value.double()).to(out), out, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(words, full[..., ask.picture, ask.words].float(), atol=1e-6, rtol=1e-4)
        assert ask.site.kind == "cross" or 0 < ask.text < ask.query.shape[-2]
        return out

    with attending(network, sites(network), compare):
        denoiser(*call)


@torch.no_grad()
def test_text_and_picture_are_told_apart(family):
    """Only the words' values depend on the prompt at the first layer that sees them."""
    network, denoiser, (x, level, cond) = made(family)
    site = sites(network, ("cross", "joint"))[0]
    asks = []

    def keep(ask, attend):
        asks.append(ask)
        return attend(ask)

    other = {name: leaf.flip(-1) if leaf.ndim > 3 else leaf for name, leaf in cond.items()}
    with attending(network, [site], keep):
        denoiser(x, level, cond)
        denoiser(x, level, other)
    first, second = asks[0], asks[1]
    assert not torch.equal(first.value[..., first.words, :], second.value[..., second.words, :])
    if site.kind == "joint" and not site.module.context_pre_only:  # the modulation depends on pooled text, equal here
        torch.testing.assert_close(first.value[..., first.picture, :], second.value[..., second.picture, :])


@torch.no_grad()
def test_maps_are_averaged_on_one_grid(family):
    network, denoiser, call = made(family)
    maps = TokenMaps([0, 1])
    with attending(network, sites(network, ("cross", "joint")), maps):
        denoiser(*call)
    mean = maps.mean()
    assert mean.shape[1] == 2
    assert mean.shape[-1] == mean.shape[-2]
    assert ((mean >= 0) & (mean <= 1)).all()


def test_gradients_flow_through_maps(family):
    network, denoiser, (x, level, cond) = made(family)
    x = x.clone().requires_grad_()
    maps = TokenMaps([1])
    with attending(network, sites(network, ("cross", "joint")), maps):
        denoiser(x, level, cond)
    (gradient,) = torch.autograd.grad(maps.mean().square().sum(), x)
    assert gradient.abs().sum() > 0


@torch.no_grad()
def test_rows_beside_leave_the_others_as_they_are(family):
    """References come along and are dropped; exchanging keys and values inside of one's own row changes nothing."""
    _, denoiser, (x, level, cond) = made(family)
    plain = denoiser(x, level, cond)
    other = torch.randn(x.shape, generator=tiny.generator(1))
    torch.testing.assert_close(beside(denoiser, x, level, cond, other, cond), plain, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_two_edits_of_a_site_are_applied_inside_out():
    network, denoiser, call = made("sd")
    order = []

    def note(name):
        def edit(ask, attend):
            order.append(name)
            return attend(ask)

        return edit

    site = sites(network, "self")[:1]
    with attending(network, site, note("outer"), ("key",)), attending(network, site, note("inner"), ("query",)):
        denoiser(*call)
    assert order == ["inner", "outer"]


def test_what_cannot_be_done_is_refused():
    network, denoiser, call = made("sd")
    one = sites(network, "self")[:1]

    def edit(ask, attend):
        return attend(ask)

    before = attributes(network)
    with (
        pytest.raises(ValueError, match="two controllers write the key of"),
        attending(network, one, edit, ("key",)),
        attending(network, one, edit, ("key", "value")),
    ):
        pass
    assert attributes(network) == before
    with attending(network, one, edit, ("key",)):  # the claims are gone with their edits
        denoiser(*call)
    with pytest.raises(ValueError, match="writes"), attending(network, one, edit, ("keys",)):
        pass
    with pytest.raises(ValueError, match=r"no joint-attention.*attn1"):
        sites(network, "joint")
    with pytest.raises(ValueError, match="expected some of"):
        sites(network, "crossed")
    with pytest.raises(ValueError, match="no picture"):
        grid(7)
    with pytest.raises(ValueError, match="no attention was seen"):
        TokenMaps([0]).mean()
    network.set_attn_processor(AttnProcessor())
    with pytest.raises(ValueError, match="default attention processors"), attending(network, one, edit):
        denoiser(*call)


def test_families_without_sites_say_so():
    pipe = tiny_families.made(tiny_families.sana, FLOW())
    with pytest.raises(ValueError, match="no self-attention"):
        sites(pipe.transformer, "self")


def test_groups_are_the_rows_of_a_branch():
    rows = torch.arange(6)
    assert groups(rows, 3).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_grids():
    assert grid(64) == (8, 8)
    assert grid(32, 0.5) == (4, 8)
