"""Laws of editing on every family that has what it needs."""

import math
from functools import cache
from types import SimpleNamespace

import pytest
import tiny
import tiny_families
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from test_attention import FAMILIES, attributes

import steer
from steer.diffusion.attention import Ask, Site, beside
from steer.diffusion.controllers import edit

STEPS, PROMPT, OTHER = 3, "a cat", "a dog"
SIZES = {**tiny_families.SIZE, "sd35": tiny_families.SIZE["sd3"]}
CASES = {**FAMILIES, "sana": (tiny_families.sana, FlowMatchEulerDiscreteScheduler)}
SOURCED = {"p2p": edit.prompt_to_prompt, "masactrl": edit.masactrl, "pnp": edit.plug_and_play}
NOTHING = {"p2p": {"cross": 0.0, "self_": 0.0}, "masactrl": {"from_step": 1.0}}
NOTHING["pnp"] = {"attention": 0.0, "features": 0.0}
ALWAYS = {"p2p": {"cross": 1.0, "self_": 1.0}, "masactrl": {"from_step": 0.0}}
ALWAYS["pnp"] = {"attention": 1.0, "features": 1.0}


def white(images, prompts):
    return images.flatten(1).mean(1)


@cache
def made(family):
    """A pipeline, its network and what a call needs; a solver that clips x0 would keep the noise of the unclipped."""
    build, scheduler = CASES[family]
    pipe = tiny_families.made(build, scheduler(**({"clip_sample": False} if scheduler is DDIMScheduler else {})))
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return pipe, network, {"num_inference_steps": STEPS, **SIZES.get(family, {})}


@cache
def recorded(family, seed=3):
    """A run of `PROMPT`, from the noise that `run` starts from; and one of `OTHER` without controllers."""
    pipe, _, options = made(family)
    return steer.record(pipe, PROMPT, generator=tiny.generator(seed), **options), run(pipe, [], options)


def run(pipe, controllers, options, prompt=OTHER, n=1, **more):
    given = {"generator": tiny.generator(), "output_type": "latent", **options, **more}
    return steer.Steered(pipe, controllers, eta=1.0 if n > 1 else None)(prompt, n=n, **given)


def near(a, b, tolerance=2e-4):
    return torch.allclose(a, b, atol=tolerance * float(b.abs().max()), rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", SOURCED)
def test_a_source_beside(family, method):
    """No strength: no control, bit for bit. The source itself: the source, to rounding (its batch is another one, and
    sums of maps have another order). Another prompt: something between the two, for a row more a branch and step.
    """
    pipe, network, options = made(family)
    source, plain = recorded(family)
    before, make = attributes(network), SOURCED[method]
    nothing = run(pipe, make(network, source, **NOTHING[method]), options)
    assert torch.equal(nothing.images, plain.images)
    assert nothing.ledger.rows == plain.ledger.rows
    always = make(network, source, **ALWAYS[method])
    assert near(run(pipe, always, options, PROMPT, generator=tiny.generator(5)).images, source.latents)
    edited = run(pipe, always, options)
    assert edited.ledger.rows == 2 * plain.ledger.rows
    assert not near(edited.images, plain.images, 1e-3)
    assert not near(edited.images, source.latents, 1e-5)
    assert attributes(network) == before
    assert torch.equal(run(pipe, [], options).images, plain.images)


@pytest.mark.parametrize("method", SOURCED)
def test_searches_pay_for_the_source_once_a_call(method):
    pipe, network, options = made("sd")
    source, _ = recorded("sd")
    search, always = steer.code(white, block=1), SOURCED[method](network, source, **ALWAYS[method])
    out = run(pipe, [always, search], options, n=3)
    assert out.ledger.rows == 2 * ((1 + 1) + 2 * (3 + 1))  # one noise, then three particles, and the source
    best = run(pipe, [always, steer.best_of_n(white)], options, n=3)
    assert len(best.candidates.latents.flatten(0, 1).unique(dim=0)) == 3


@pytest.mark.parametrize("method", SOURCED)
def test_the_network_is_restored_after_an_exception(method):
    pipe, network, options = made("sd")
    source, _ = recorded("sd")
    plain, before = recorded("sd")[1].images, attributes(network)

    def fail(images, prompts):
        raise RuntimeError("on purpose")

    controllers = [SOURCED[method](network, source, **ALWAYS[method]), steer.code(fail, block=1)]
    with pytest.raises(RuntimeError, match="on purpose"):
        run(pipe, controllers, options, n=2)
    assert attributes(network) == before
    assert torch.equal(run(pipe, [], options).images, plain)


def test_two_that_write_apart_go_together_and_others_are_refused():
    pipe, network, options = made("sd")
    source, _ = recorded("sd")
    words = edit.prompt_to_prompt(network, source, cross=1.0, self_=0.0)
    looks = edit.masactrl(network, source, from_step=0.0)
    both, turned = (run(pipe, chain, options) for chain in ([words, looks], [looks, words]))
    assert near(both.images, turned.images)
    assert both.ledger.rows == 2 * 3 * STEPS  # particle and two sources
    for one in (words, looks):
        assert not near(both.images, run(pipe, one, options).images, 1e-4)
    searched = run(pipe, [steer.guidance.cfg(2.0), words, looks, steer.code(white, block=1)], options, n=2)
    assert searched.ledger.rows == 2 * ((1 + 2) + 2 * (2 + 2))
    with pytest.raises(ValueError, match="two controllers write the key"):
        run(pipe, [looks, edit.plug_and_play(network, source)], options)


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_words_tell_where(family):
    """Masks of words: LocalBlend at threshold 0 is no blend, above 1 it is the source; MasaCtrl's two halves differ."""
    pipe, network, options = made(family)
    source, words = recorded(family)[0], ((1, 2), (1,))
    plain = run(pipe, edit.prompt_to_prompt(network, source), options).images

    def blended(threshold):
        control = edit.prompt_to_prompt(network, source, blend=words, blend_from=0.0, threshold=threshold)
        return run(pipe, control, options).images

    assert near(blended(-1.0), plain)
    assert near(blended(1.0), source.latents)
    middle = (blended(0.99) - source.latents).abs().amax(1 if plain.ndim == 4 else 2)
    assert 0 < (middle < 1e-4).float().mean() < 1
    assert near(run(pipe, edit.masactrl(network, source, 0.0, words=words, threshold=-1.0), options).images,
                run(pipe, edit.masactrl(network, source, 0.0), options).images)  # fmt: skip
    masked = [edit.masactrl(network, source, 0.0, words=words, threshold=at) for at in (-1.0, 0.99)]
    assert not near(*(run(pipe, one, options).images for one in masked), 1e-5)


def asked_of(control, kind, text=0, *edited):
    """What an edit of one site makes of random parts of a particle and its source, and the parts."""
    query, key, value = torch.randn(3, 2, 2, 4 + text, 3, generator=tiny.generator()).unbind()
    ask, outs = Ask(Site("one", kind, torch.nn.Identity()), query, key, value, text=text), []

    def plainly(ask):
        mask = ask.mask
        return torch.nn.functional.scaled_dot_product_attention(ask.query, ask.key, ask.value, attn_mask=mask)

    def network_call(x, level, cond):
        outs.append(control(x[:1], *edited, ask, plainly))
        return x

    beside(network_call, query[:1], steer.Level(1.0, 1.0), {}, query[1:], {})
    return outs[0], query, key, value


def test_maps_of_joint_attention_are_replaced_in_the_words_columns():
    """Against the softmax over all tokens, written out, with the rest of each row scaled to what the words leave."""
    network, (source, _) = made("sd3")[1], recorded("sd3")
    control = edit.prompt_to_prompt(network, source, weights={1: 2.0, 4: 0.0})
    out, query, key, value = asked_of(control._mapped, "joint", 5)
    maps = (query @ key.mT / math.sqrt(3)).softmax(-1)
    words = maps[1:, :, :4, 4:] * torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0])
    rest = maps[:1, :, :4, :4] / maps[:1, :, :4, :4].sum(-1, keepdim=True)
    rest = rest * (1 - words.sum(-1, keepdim=True)).clamp(min=0)
    expected = maps @ value
    expected[:1, :, :4] = torch.cat([rest, words], -1) @ value[:1]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_the_object_reads_the_object_and_the_rest_the_rest():
    """Masked MasaCtrl, token by token: where the particle's object is not where the source's is."""
    network, (source, _) = made("sd")[1], recorded("sd")
    control = edit.masactrl(network, source, 0.0, words=((1,), (1,)), threshold=0.5)
    shares = torch.tensor([[[0.9, 0.8], [0.1, 0.2]], [[0.9, 0.1], [0.7, 0.3]]])  # of the particle, of the source
    seen = SimpleNamespace(found={"before": shares}, ratio=1.0, shares=lambda shape: shares)
    out, query, key, value = asked_of(control._edit, "self", 0, seen)
    expected = (query @ key.mT / math.sqrt(3)).softmax(-1) @ value
    logits = query[0] @ key[1].mT / math.sqrt(3)
    for token, there in enumerate([[0, 2], [0, 2], [1, 3], [1, 3]]):
        expected[0, :, token] = (logits[:, token : token + 1, there].softmax(-1) @ value[1][:, there])[:, 0]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_bad_input_is_refused():
    pipe, network, options = made("sd")
    source, _ = recorded("sd")
    several = steer.record(pipe, [PROMPT, OTHER], generator=tiny.generator(), **options)
    for make in SOURCED.values():
        with pytest.raises(ValueError, match="source of 2 pictures"):
            make(network, several)
    with pytest.raises(ValueError, match="cross, self_ and blend_from"):
        edit.prompt_to_prompt(network, source, cross=1.5)
    with pytest.raises(ValueError, match="from_step"):
        edit.masactrl(network, source, from_step=2.0)
    with pytest.raises(ValueError, match="attention and features"):
        edit.plug_and_play(network, source, features=-0.1)
    with pytest.raises(ValueError, match=r"no self or joint-attention.*attn1"):
        edit.masactrl(network, source, layers="nowhere")
    with pytest.raises(ValueError, match="residual block"):
        edit.plug_and_play(network, source, blocks="nowhere")
    with pytest.raises(ValueError, match="positions of tokens"):
        edit.prompt_to_prompt(network, source, blend=((), (1,)))
    with pytest.raises(ValueError, match="network reads 16 tokens"):
        run(pipe, edit.prompt_to_prompt(network, source, weights={40: 2.0}), options)
    with pytest.raises(ValueError, match=r"aligned as \(8, 8\) tokens"):
        run(pipe, edit.prompt_to_prompt(network, source, edit.aligned(pipe.tokenizer, "a", "b", 8)), options)
    with pytest.raises(ValueError, match="num_inference_steps of the run"):
        run(pipe, edit.masactrl(network, source), {"num_inference_steps": 5})
    wide = steer.record(pipe, PROMPT, height=32, width=32, num_inference_steps=STEPS)
    with pytest.raises(ValueError, match="at the size"):
        run(pipe, edit.masactrl(network, wide), options)


def test_a_family_without_the_sites_says_so():
    pipe, network, options = made("sana")
    source, _ = recorded("sana")
    for make in (edit.masactrl, edit.plug_and_play, edit.prompt_to_prompt):
        with pytest.raises(ValueError, match="has no self or joint-attention"):
            make(network, source)
    words = edit.prompt_to_prompt(network, source, cross=1.0, self_=0.0)  # it has words to look at
    assert not near(run(pipe, words, options).images, run(pipe, [], options).images, 1e-4)
