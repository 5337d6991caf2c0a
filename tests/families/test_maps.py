"""Laws of token maps that are kept along a run, on every family that attends to words."""

from dataclasses import dataclass, replace

import pytest
import tiny
import tiny_families
import torch
from test_attention import FAMILIES, attributes

import steer
from steer import guidance
from steer.diffusion.attention import attending, groups, probabilities, sites
from steer.diffusion.controllers.maps import Maps

STEPS, KINDS = 3, ("cross", "joint")


def made(family):
    build, scheduler = FAMILIES[family]
    pipe = tiny_families.made(build, scheduler())
    size = tiny_families.SIZE.get("sd3" if family == "sd35" else family, {})
    return pipe, pipe.unet if hasattr(pipe, "unet") else pipe.transformer, size


def run(pipe, controllers, n=1, prompt="a cat", **options):
    options = {"num_inference_steps": STEPS, "generator": tiny.generator(), "output_type": "latent", **options}
    return steer.Steered(pipe, controllers)(prompt, n=n, **options)


@dataclass(frozen=True)
class Wraps(steer.Controller):
    """Does nothing, but stands between: a wrapped prediction goes through x0, and is rounded there."""

    def wrap(self, denoiser):
        return lambda x, level, cond: denoiser(x, level, cond)


def by_hand(pipe, network, controllers=(), n=1, **options):
    """{site: (steps, n, tokens, h * w)}: the conditional rows' maps of every call of the network."""
    kept = {}

    def keep(ask, attend):
        kept.setdefault(ask.site.name, []).append(groups(probabilities(ask).mean(1), n)[-1].mT)
        return attend(ask)

    with attending(network, sites(network, KINDS), keep):
        run(pipe, [Wraps(), *controllers], n, **options)
    return {name: torch.stack(maps) for name, maps in kept.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_change_nothing_and_are_means_over_the_steps(family):
    pipe, network, size = made(family)
    plain, maps = run(pipe, Wraps(), **size), Maps(network)
    before = attributes(network)
    out = run(pipe, maps, **size)
    assert torch.equal(out.images, plain.images)
    assert out.ledger.rows == plain.ledger.rows
    assert attributes(network) == before
    expected = by_hand(pipe, network, **size)
    assert set(maps.found) == {site.name for site in sites(network, KINDS)} == set(expected)
    for name, found in maps.found.items():
        assert len(expected[name]) == STEPS
        torch.testing.assert_close(found.flatten(2), expected[name].mean(0))
    assert maps.mean().shape[:1] == (1,)


@dataclass(frozen=True)
class Choice(steer.Controller):
    """At the second look both slots continue particle 1."""

    def look(self, state):
        return state.gather(torch.tensor([[1, 1]])) if state.i == 1 else state


def test_a_particle_has_the_maps_of_its_ancestors():
    pipe, network, _ = made("sd")
    maps, options = Maps(network, (1, 2)), {"n": 2, "eta": 1.0}
    run(pipe, [maps, Choice()], **options)
    for name, steps in by_hand(pipe, network, [Choice()], **options).items():
        steps = steps[:, :, 1:3]
        expected = torch.stack([(steps[0, 1] + steps[1, 1] + steps[2, k]) / 3 for k in range(2)])
        torch.testing.assert_close(maps.found[name].flatten(2), expected, atol=1e-6, rtol=1e-4)
        assert not torch.allclose(steps[0, 0], steps[0, 1], atol=1e-4)


def test_a_stretch_of_the_run_some_tokens_and_sides():
    pipe, network, _ = made("sd")
    first = Maps(network, (2,), sides=(4,))
    run(pipe, steer.during(first, 0.0, 0.4))  # steps 0 and 1 of 3
    for name, steps in by_hand(pipe, network).items():
        side = round(steps.shape[-1] ** 0.5)
        assert (name in first.found) == (side == 4)
        if side == 4:
            torch.testing.assert_close(first.found[name].flatten(2), steps[:2, :, 2:3].mean(0))
    assert first.mean().shape == (1, 1, 4, 4)
    assert first.mean(8).shape == (1, 1, 8, 8)


def test_guidance_in_front_leaves_the_conditional_branch():
    """PAG asks a weaker network as well, after the plain one, and takes its branches one by one."""
    pipe, network, _ = made("sd")
    plain, under = Maps(network), Maps(network)
    run(pipe, steer.during(plain, 0.0, 0.3))  # the first step, where both have the same x
    run(pipe, [guidance.pag(network, 3.0, 3.0), steer.during(under, 0.0, 0.3)])
    for name, found in plain.found.items():
        torch.testing.assert_close(under.found[name], found, atol=1e-6, rtol=1e-4)


def test_a_second_run_starts_afresh():
    pipe, network, _ = made("sd")
    maps = Maps(network)
    run(pipe, maps, prompt="a dog")
    other = maps.mean()
    run(pipe, maps)
    once = replace(maps)
    run(pipe, once)
    assert torch.equal(maps.mean(), once.mean())
    assert not torch.equal(maps.mean(), other)


def test_bad_input_is_refused():
    pipe, network, _ = made("sd")
    with pytest.raises(ValueError, match=r"layers = 'attn3'.*attn2"):
        Maps(network, layers="attn3")
    with pytest.raises(ValueError, match="run a pipeline under"):
        Maps(network).mean()
    none = Maps(network, sides=(5,))
    run(pipe, none)
    with pytest.raises(ValueError, match=r"no maps of sides \(5,\)"):
        none.mean()
