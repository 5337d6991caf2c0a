"""Laws of attention by steer_kernels, without a GPU: its references in the place of the kernels change no result."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from methods.guidance_toys import same
from steer_kernels import serving
from test_attention import FAMILIES
from test_attention import made as called
from test_style import every, made

from steer.diffusion.attention import TokenMaps, attending, sites
from steer.diffusion.controllers import style
from steer.diffusion.controllers.style import core, fused


class Serving:
    """In the place of the question for a kernel: there is one, whose reference serves, or not; counts the questions."""

    def __init__(self):
        self.on, self.asked = True, 0

    def __call__(self, name, query):
        self.asked += 1
        return getattr(import_module(f"steer_kernels.{name}"), name) if self.on else None


@pytest.fixture
def kernels(monkeypatch):
    asking = Serving()
    monkeypatch.setattr(serving, "kernel", asking)
    return asking


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_injection_by_kernels_is_injection(family, masked, kernels):
    network, kept, other, run = made(family)
    mask = torch.arange(256).view(16, 16) % 3 / 2 if masked else None
    two = style.style_id(network, kept, [other, kept], 0.6, 1.5, "", 0.8, mask, weights=[0.7, 0.3])
    for name, control in ({"two styles and content": two} | every(network, other, mask=mask)).items():
        kernels.on, kernels.asked = True, 0
        found = run(control)
        reads = name != "attention_adain" and not (masked and name == "coupled")
        assert bool(kernels.asked) == reads, name
        kernels.on = False
        assert same(found.images, run(control).images, 2e-5), name


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_a_set_by_kernels_is_a_set(family, kernels):
    network, _, _, run = made(family)
    for control in (style.style_aligned(network, strength=0.7), style.coupled(network)):
        kernels.on, kernels.asked = True, 0
        found = run(control, ["a cat", "dog"], n=2)
        assert kernels.asked
        kernels.on = False
        assert same(found.images, run(control, ["a cat", "dog"], n=2).images, 2e-5)


@pytest.mark.parametrize("tokens", [slice(None), (2, 1), slice(-3, None)])
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_by_kernels_are_maps(family, tokens, kernels):
    network, denoiser, (x, level, cond) = called(family)
    where = sites(network, ("cross", "joint"))

    def answer():
        asked, seen = x.clone().requires_grad_(), TokenMaps(tokens)
        with attending(network, where, seen):
            out = denoiser(asked, level, cond)
        (slope,) = torch.autograd.grad(seen.mean()[:, 0].square().sum() + out.square().mean(), asked)
        return out, seen.mean(), slope

    found = answer()
    assert bool(kernels.asked) == (family != "pixart")  # which masks its words
    kernels.on = False
    for have, want in zip(found, answer(), strict=True):
        assert same(have, want, 2e-5)


def test_what_kernels_cannot_do_is_done_as_before(kernels, monkeypatch):
    """Beside another edit, with a mask, and where a gradient is to be taken through what is injected."""
    network, _, other, run = made("sd")
    control = style.style_aligned(network, other)
    kernels.on = False
    expected = run(control).images
    monkeypatch.setattr(core, "fused", None)
    with attending(network, sites(network), lambda ask, attend: attend(ask)):
        kernels.on = True
        assert same(run(control).images, expected, 2e-5)
    ask = SimpleNamespace(query=torch.ones(2, 1, 4, 3, requires_grad=True), key=torch.ones(1), value=torch.ones(1))
    assert not fused.serves(control.rule, ask, SimpleNamespace(size=2))
