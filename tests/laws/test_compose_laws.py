"""Laws of the composition controllers, on tiny pipelines of every family."""

import math
from functools import partial

import pytest
import tiny
import tiny_families
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny import Watch

import steer
from steer import Steered, guidance
from steer.diffusion.controllers import compose
from steer.diffusion.loop import finished, sample
from steer.diffusion.solve import ddim

PROMPT = "a cat and dog"
ASK = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 3.0}

FAMILIES = {
    "sd": (tiny.pipeline, DDIMScheduler, "tokenizer"),
    "sdxl": (tiny_families.sdxl, DDIMScheduler, "tokenizer"),
    "sd3": (tiny_families.sd3, FlowMatchEulerDiscreteScheduler, "tokenizer"),
    "flux": (tiny_families.flux, FlowMatchEulerDiscreteScheduler, "tokenizer_2"),
    "pixart": (tiny_families.pixart, DDIMScheduler, "tokenizer"),
    "sana": (tiny_families.sana, FlowMatchEulerDiscreteScheduler, "tokenizer"),
}


def pipeline():
    return tiny.pipeline(DDIMScheduler(clip_sample=False))


def attributes(network) -> list:
    return [(sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]


def run(pipe, controllers=(), prompt=PROMPT, n=1, eta=None, exact=False, chunk=None, **kwargs):
    steered = Steered(pipe, controllers, eta, exact, chunk)
    return steered(prompt, n=n, generator=tiny.generator(), **{**ASK, **kwargs})


@pytest.mark.parametrize("family", FAMILIES)
def test_controllers_on_every_family(family):
    build, scheduler, words = FAMILIES[family]
    pipe = tiny_families.made(build, scheduler())
    network, tokenizer = (pipe.unet if hasattr(pipe, "unet") else pipe.transformer), getattr(pipe, words)
    size = tiny_families.SIZE.get(family, {})
    plain = run(pipe, (), **size)
    before = attributes(network)  # a pipeline leaves attributes of its own at its first call
    assert torch.equal(run(pipe, compose.aligned(network, tokenizer, 0.0), **size).images, plain.images)
    moved = run(pipe, compose.aligned(network, tokenizer, 3.0), **size)
    assert torch.isfinite(moved.images).all()
    assert not torch.equal(moved.images, plain.images)
    assert (moved.ledger.rows, moved.ledger.backward_rows) == (plain.ledger.rows + 2, 2)
    learnt = run(pipe, compose.saga(network, tokenizer, iterations=1, noises=2, lr=1.0), **size)
    assert (learnt.ledger.rows, learnt.ledger.backward_rows) == (plain.ledger.rows + 2, 2)
    assert attributes(network) == before


def test_families_without_such_attention_say_so():
    pipe = tiny_families.made(tiny_families.lumina2, FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="no cross or joint-attention"):
        compose.aligned(pipe.transformer, pipe.tokenizer)


def test_an_exception_leaves_the_network_as_it_was():
    pipe = pipeline()
    before, plain = attributes(pipe.unet), run(pipe)

    def fail(seen):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        run(pipe, compose.saga(pipe.unet, pipe.tokenizer, loss=fail))
    assert attributes(pipe.unet) == before
    assert torch.equal(run(pipe).images, plain.images)


def test_each_prompt_and_particle_is_its_own():
    """A batch of prompts with different entities, in exact, chunked and plain batches, is the prompts one by one."""
    pipe, prompts = pipeline(), [PROMPT, "a red fox"]
    steps = compose.aligned(pipe.unet, pipe.tokenizer, 3.0)
    start = torch.randn(2, 4, 8, 8, generator=tiny.generator())
    alone = [run(pipe, steps, text, latents=x[None]).images[0] for text, x in zip(prompts, start)]
    for n, how in ((1, {}), (3, {"eta": 1.0, "chunk": 2}), (1, {"exact": True})):
        asked = {**how, "eta": None} if n == 1 else how
        found = run(pipe, steps, prompts, n=n, latents=start, **asked)
        if n == 1:
            torch.testing.assert_close(found.images, torch.stack(alone), atol=1e-4, rtol=1e-4)
        assert found.ledger.backward_rows == 2 * n * 2


def test_both_drivers_agree():
    pipe = pipeline()
    steps = [compose.saga(pipe.unet, pipe.tokenizer, iterations=2, noises=2, lr=1.0)]
    steps += [compose.attend_and_excite(pipe.unet, pipe.tokenizer, 2.0, thresholds={})]
    theirs = run(pipe, steps)
    asked = {name: ASK[name] for name in ("num_inference_steps", "guidance_scale")}
    d = steer.denoiser_of(pipe, PROMPT, generator=tiny.generator(), **asked)
    with torch.no_grad():
        ours = finished(sample(d, d.shape, d.schedule, steps, cond=d.cond, prompts=d.prompts, x=d.x, solver=ddim(0.0)))
    torch.testing.assert_close(ours.x, theirs.images, atol=1e-3, rtol=1e-3)
    assert ours.run.ledger.rows == theirs.ledger.rows
    assert ours.run.ledger.backward_rows == theirs.ledger.backward_rows


def dark(pictures, prompts):
    return -pictures.mean((1, 2, 3))


def test_it_composes_with_guidance_before_it_and_search_after_it():
    pipe = pipeline()
    steps = compose.aligned(pipe.unet, pipe.tokenizer, 3.0)
    own = run(pipe, steps, guidance_scale=2.0)
    same = run(pipe, [guidance.cfg(2.0), steps])
    torch.testing.assert_close(same.images, own.images, atol=1e-4, rtol=1e-4)
    assert same.ledger.backward_rows == own.ledger.backward_rows == 2
    assert same.ledger.rows == own.ledger.rows == 2 * 4 + 2
    with pytest.raises(ValueError, match="List guidance before"):
        run(pipe, [steps, guidance.cfg(2.0)])
    found = run(pipe, [guidance.pag(pipe.unet, 2.0, 1.0), steps, steer.code(dark, block=2)], n=3, eta=1.0)
    assert found.ledger.backward_rows == 3 * 2
    assert found.rewards is not None


def test_pruned_particles_are_read_once():
    pipe = pipeline()
    steps = compose.aligned(pipe.unet, pipe.tokenizer, 3.0)
    found = run(pipe, [steer.funnel(dark, (3, 1), block=1), steps], n=3, eta=1.0)
    assert found.ledger.backward_rows == 3 + 1


def test_a_signal_is_shared_and_noise_stays_the_particles_own():
    """x at the step is m + sigma eps; particle 0 does not see how many others there are."""
    pipe = pipeline()
    few, many = Watch(), Watch()
    make = partial(compose.saga, pipe.unet, pipe.tokenizer, at=0.25, iterations=3, noises=4, lr=2.0)
    alone = run(pipe, [make(), few])
    among = run(pipe, [make(), many], n=3, eta=1.0)
    assert alone.ledger.backward_rows == among.ledger.backward_rows == 3 * 4  # one distribution a prompt
    first, state = many.states[0], many.states[1]
    signal = state.x - state.level.sigma * first.x / first.level.sigma
    torch.testing.assert_close(signal, signal[:1].expand_as(signal), atol=1e-5, rtol=1e-4)
    lone = few.states[1].x - state.level.sigma * few.states[0].x / first.level.sigma
    torch.testing.assert_close(lone, signal[:1], atol=1e-3, rtol=1e-3)
    limit = (state.level.alpha * first.x0[0]).std()
    assert (signal.flatten(1).std(1) <= limit * (1 + 1e-4)).all()
    each = Watch()
    apart = run(pipe, [make(shared=False), each], n=2, eta=1.0)
    assert apart.ledger.backward_rows == 2 * 3 * 4
    own = each.states[1].x - state.level.sigma * each.states[0].x / first.level.sigma
    assert (own[0] - own[1]).abs().max() > 1e-3


def test_bad_settings_are_refused():
    pipe = pipeline()
    make = partial(compose.saga, pipe.unet, pipe.tokenizer)
    with pytest.raises(ValueError, match="expected 0 <= at < 1"):
        make(at=1.0)
    with pytest.raises(ValueError, match="expected a finite strength"):
        compose.aligned(pipe.unet, pipe.tokenizer, math.nan)
    with pytest.raises(ValueError, match="second step or later"):
        run(pipe, make(), num_inference_steps=1)
    with pytest.raises(ValueError, match="no entity was found"):
        run(pipe, make(), prompt="noto style")
    with pytest.raises(ValueError, match=r"side = 16.*heights \[4\]"):
        run(pipe, compose.aligned(pipe.unet, pipe.tokenizer, side=16))
    with pytest.raises(ValueError, match="but the entities of"):
        run(pipe, compose.in_boxes(pipe.unet, pipe.tokenizer, {"fox": (0.0, 0.0, 0.5, 1.0)}))
