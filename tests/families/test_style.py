"""Laws of attention to references, on tiny pipelines of every family that has self- or joint attention."""

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import tiny
import tiny_families
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from methods.guidance_toys import same
from methods.style import ASK, STEPS, references, steered
from test_attention import FAMILIES, attributes
from test_trajectories import SIZES

import steer
from steer.diffusion.attention import Ask, Site, attending, pb_relax, sites
from steer.diffusion.controllers import style
from steer.rewards import Compressibility

FEW = 3


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@cache
def made(family):
    """A pipeline, its network, a plain run recorded, another one, and how it is called."""
    build, scheduler = FAMILIES[family]
    config = {"clip_sample": False} if scheduler is DDIMScheduler else {}  # a clipped x0 means another prediction
    pipe = tiny_families.made(build, scheduler(**config))
    options = {"num_inference_steps": FEW, "output_type": "latent", "guidance_scale": 2.0, **SIZES.get(family, {})}
    kept = steer.record(pipe, "a cat", generator=tiny.generator(), **options)
    other = steer.record(pipe, "dog", generator=tiny.generator(9), **options)

    def run(controllers, prompt="a cat", n=1, **kwargs):
        return steer.Steered(pipe, controllers)(prompt, n=n, **{"generator": tiny.generator(), **options, **kwargs})

    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer, kept, other, run


def every(network, other, strength=1.0, mask=None):
    """All controllers that inject."""
    injected = style.style_id(network, None, other, strength=strength, mask=mask, layers="")
    aligned = style.style_aligned(network, other, strength=strength, mask=mask)
    matched = style.attention_adain(network, other, strength, mask=mask)
    coupled = style.coupled(network, other, strength=0.0 if mask is not None else strength)
    return {"style_id": injected, "style_aligned": aligned, "attention_adain": matched, "coupled": coupled}


def test_no_strength_and_no_mask_are_no_control(family):
    network, kept, other, run = made(family)
    for setting in ({"strength": 0.0}, {"mask": torch.zeros(16, 16)}):
        idle = [*every(network, other, **setting).values(), style.style_id(network, kept, other, **setting)]
        found = run(idle)
        assert torch.equal(found.images, kept.latents)
        assert found.ledger.rows == kept.rows


def test_identical_references_change_nothing_and_others_do(family):
    network, kept, other, run = made(family)
    before = attributes(network)
    for gamma in (0.0, 0.7):
        found = run(style.style_id(network, kept, kept, gamma, tau=1.0, layers=""))
        assert same(found.images, kept.latents, 2e-5)
    assert same(run(style.attention_adain(network, kept)).images, kept.latents, 2e-5)
    one = kept.rows // FEW
    for name, control in every(network, other).items():
        found = run(control)
        assert not same(found.images, kept.latents, 1e-4), name
        assert found.ledger.rows == 2 * kept.rows - (one if name == "style_id" else 0), name
    assert attributes(network) == before


def test_a_full_mask_is_none_and_a_half_is_between(family):
    network, kept, other, run = made(family)
    half = torch.zeros(16, 16)
    half[:, 8:] = 1
    for name in ("style_id", "style_aligned"):
        whole, full, part = (run(every(network, other, mask=m)[name]).images for m in (None, torch.ones(16, 16), half))
        assert same(full, whole, 1e-5), name
        assert not same(part, whole, 1e-5), name
        assert not same(part, kept.latents, 1e-5), name


@dataclass(frozen=True)
class Inside(steer.Controller):
    """Sees what comes out of the edits of the controllers after it, and what would have."""

    network: Any
    site: Site
    seen: list

    def wrap(self, denoiser):
        def watched(x, level, cond):
            with attending(self.network, [self.site], self.note):
                return denoiser(x, level, cond)

        return watched

    def note(self, ask, attend):
        out = attend(ask)
        self.seen.append((ask, out, eager(ask)))  # torch's own attention would go through the others' edits
        return out


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_text_reads_what_it_read(family):
    """At joint sites only what the particles' picture tokens read is changed."""
    network, _, other, run = made(family)
    site, seen = sites(network, "joint")[0], []
    run([Inside(network, site, seen), style.style_id(network, None, other, layers=site.name)])
    _, first, plain = seen[0]
    assert same(first, plain, 1e-5)  # the noisiest step
    ask, out, plain = seen[1]
    assert 0 < ask.text < ask.query.shape[-2]
    assert same(out[..., ask.words, :], plain[..., ask.words, :], 1e-5)
    assert same(out[1], plain[1], 1e-5)  # the reference: its first branch
    assert not same(out[0][..., ask.picture, :], plain[0][..., ask.picture, :], 1e-2)


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_the_first_of_a_set_is_as_by_itself(family):
    network, _, _, run = made(family)
    found = run(style.style_aligned(network), ["a cat", "dog"])
    alone = run((), ["a cat", "dog"])
    assert found.ledger.rows == alone.ledger.rows
    assert same(found.images[0], alone.images[0], 2e-5)
    assert not same(found.images[1], alone.images[1], 1e-4)
    coupled = run(style.coupled(network), ["a cat", "dog"]).images
    assert not any(same(a, b, 1e-4) for a, b in zip(coupled, alone.images, strict=True))


def test_several_styles_are_weighed():
    network, kept, other, run = made("sd")
    mixed = partial(style.style_id, network, None, [other, kept])
    assert same(run(mixed(weights=(1, 0))).images, run(style.style_id(network, None, other)).images, 1e-5)
    assert same(run(mixed(weights=(2, 2))).images, run(mixed()).images, 1e-6)
    assert not same(run(mixed()).images, run(mixed(weights=(1, 0))).images, 1e-4)
    both = steer.Trajectory(torch.cat([other.x, kept.x], 1), other.levels, _joined(other.cond, kept.cond), ("", ""))
    assert same(run(style.style_id(network, None, both)).images, run(mixed()).images, 1e-6)
    assert run(mixed()).ledger.rows == kept.rows + 2 * (kept.rows - kept.rows // FEW)


def _joined(a, b):
    return {name: torch.cat([a[name], b[name]]) for name in a}


def test_controllers_of_other_sites_go_in_any_order():
    """Each sees its own references and leaves the other's alone: the order cannot matter."""
    pipe, content, other = references()
    one = style.style_id(pipe.unet, content, other, layers="up_blocks")
    two = style.style_aligned(pipe.unet, [content, other], layers="down_blocks")
    three = style.attention_adain(pipe.unet, other, layers="mid")
    found, turned = (steered(pipe, controls) for controls in ([one, two, three], [three, two, one]))
    assert same(found.images, turned.images, 1e-4)
    assert found.ledger.rows == turned.ledger.rows == 4 * STEPS + 2 * (STEPS - 1)
    for control in (one, two, three):
        assert not same(steered(pipe, control).images, found.images, 1e-3)
    among = style.style_aligned(pipe.unet, layers="down_blocks")  # particles that see each other, beside references
    pairs = [steered(pipe, controls, ["a cat", "dog"]).images for controls in ([one, among], [among, one])]
    assert same(*pairs, 1e-4)


def test_controllers_of_one_site_are_refused():
    pipe, content, other = references()
    with pytest.raises(ValueError, match=r"two controllers write the .*key.* of up_blocks"):
        steered(pipe, [style.style_id(pipe.unet, content, other), style.style_aligned(pipe.unet, other)])


def test_guidance_before_is_the_pipelines_own():
    pipe, content, other = references()
    control = style.style_id(pipe.unet, content, other)
    own = steered(pipe, control, "a cat", guidance_scale=3.0)
    ours = steered(pipe, [steer.guidance.cfg(3.0), control], "a cat", guidance_scale=2.0)
    assert same(ours.images, own.images, 1e-4)
    assert ours.ledger.rows == own.ledger.rows == 2 * (3 * STEPS - 2)
    between = [style.style_aligned(pipe.unet, other, layers="down"), steer.guidance.cfg(3.0), control]
    with pytest.raises(ValueError, match="list it before both"):
        steered(pipe, between, "a cat", guidance_scale=2.0)


def test_a_stretch_of_the_run():
    pipe, content, other = references()
    late = steer.during(style.style_id(pipe.unet, content, other), start=0.5)
    found = steered(pipe, late)
    assert found.ledger.rows == STEPS + 2 * STEPS // 2
    assert not same(found.images, steered(pipe, style.style_id(pipe.unet, content, other)).images, 1e-3)


def test_search_pays_for_references_once_a_call():
    pipe, content, other = references()
    chain = [style.style_id(pipe.unet, content, other), steer.code(Compressibility(), block=1)]
    run = partial(steered, pipe, chain, n=3, eta=1.0)
    found = run()
    assert found.ledger.rows == 1 + (STEPS - 1) * (3 + 2)  # all start from the content's noise
    assert len(found.candidates.latents[0]) == 3
    parts = steer.Steered(pipe, chain, chunk=1)("", n=3, generator=tiny.generator(), eta=1.0, **ASK)
    assert same(parts.images, found.images, 1e-4)
    assert parts.ledger.rows == 1 + (STEPS - 1) * 3 * (1 + 2)
    with pytest.raises(ValueError, match="draws no noise"):
        steered(pipe, [chain[0], steer.best_of_n(Compressibility())], n=3)


def test_the_network_is_restored_where_a_run_fails():
    pipe, _, other = references()
    before = attributes(pipe.unet)
    with pytest.raises(ValueError, match="num_inference_steps of the run"):
        steered(pipe, style.style_id(pipe.unet, None, other), num_inference_steps=STEPS + 1)
    with pytest.raises(ValueError, match="height and width"):
        steered(pipe, style.style_id(pipe.unet, None, other), height=32, width=32)
    assert attributes(pipe.unet) == before
    latent = steered(pipe, style.latent_adain(other, mask=torch.zeros(16, 16)))
    assert torch.equal(latent.images, steered(pipe, ()).images)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gamma": 1.5}, "0 <= gamma <= 1"),
        ({"tau": 0.0}, "tau > 0"),
        ({"strength": 2.0}, "strength = 2.0"),
        ({"mask": torch.full((4, 4), 2.0)}, "a mask of shape"),
        ({"mask": torch.ones(4)}, "a mask of shape"),
        ({"weights": (1, 1)}, "expected one >= 0 for each"),
        ({"weights": (0,)}, "expected one >= 0 for each"),
        ({"layers": "nowhere"}, "no self or joint-attention"),
        ({"style": []}, "expected one Trajectory"),
        ({"style": torch.zeros(1)}, "expected one Trajectory"),
    ],
)
def test_bad_input_is_refused(wrong, said):
    pipe, content, other = references()
    with pytest.raises(ValueError, match=said):
        style.style_id(**{"network": pipe.unet, "content": content, "style": other, **wrong})


def test_other_bad_input_is_refused():
    pipe, content, other = references()
    two = steer.Trajectory(content.x.repeat(1, 2, 1, 1, 1), content.levels, content.cond, ("", ""))
    with pytest.raises(ValueError, match="a content of 2 pictures"):
        style.style_id(pipe.unet, two, other)
    with pytest.raises(ValueError, match="parts"):
        style.attention_adain(pipe.unet, other, parts=("mask",))
    with pytest.raises(ValueError, match="alpha = -1"):
        style.latent_adain(other, -1)
    wide = steer.Trajectory(torch.zeros(5, 1, 4, 16, 16), other.levels, other.cond, ("",))
    with pytest.raises(ValueError, match="references of 2 kinds"):
        style.style_aligned(pipe.unet, [other, wide])
    sana = tiny_families.made(tiny_families.sana, FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="no self or joint-attention"):
        style.style_aligned(sana.transformer, other)


def ask(dtype=torch.float32, scale=1.0, mask=None):
    parts = (torch.randn(2, 2, 9, 16, generator=tiny.generator(k)) for k in range(3))
    query, key, value = (part.to(dtype) for part in parts)
    return Ask(Site("here", "self", None), scale * query, scale * key, value, mask)


def eager(one: Ask) -> torch.Tensor:
    logits = one.query @ one.key.mT / math.sqrt(one.query.shape[-1])
    return logits.softmax(-1) @ one.value


def test_pb_relax_is_attention():
    mask = torch.rand(9, 9, generator=tiny.generator()) > 0.3
    mask |= torch.eye(9, dtype=torch.bool)
    for given in (None, mask, torch.zeros(9, 9).masked_fill(~mask, -5.0)):
        one = ask(mask=given)
        exact = torch.nn.functional.scaled_dot_product_attention(one.query, one.key, one.value, attn_mask=given)
        torch.testing.assert_close(pb_relax()(one, eager), exact, atol=1e-5, rtol=0)
    pipe, _, _ = references()
    with attending(pipe.unet, sites(pipe.unet, "self"), pb_relax(), ("output",)):
        found = steered(pipe, ())
    assert same(found.images, steered(pipe, ()).images, 1e-4)
    with pytest.raises(ValueError, match="alpha > 0"):
        pb_relax(0)


def test_pb_relax_is_finite_where_half_precision_is_not():
    one = ask(torch.float16, scale=200.0)
    logits = one.query.float() @ one.key.float().mT / 4
    assert logits.abs().max() > 1e5
    assert not eager(one).isfinite().all()
    relaxed = pb_relax()(one, eager)
    assert relaxed.isfinite().all()
    exact = logits.softmax(-1) @ one.value.float()
    torch.testing.assert_close(relaxed.float(), exact, atol=1e-2, rtol=1e-2)
