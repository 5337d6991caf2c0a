"""What is put into a network: soft tokens in both kinds, orthogonal rotations, and two models along one run."""

import pytest
import torch
from diffusion_toys import OPTIONS, PROMPTS, chain, generator, pipeline_task
from torch import nn

import steer
from steer.diffusion.loop import finished, sample
from steer.diffusion.schedule import vp
from steer.training import Run, tune
from steer.training.diffusion import METHODS, annealed, combined
from steer.training.diffusion.adapters import lora, oft
from steer.training.diffusion.soft_tokens import SoftTokens, blocks_of, soft_tokens


def asked(task, level=1):
    with torch.no_grad():
        return task.x0(task.noise(2, generator()), task.schedule[level], task.cond(PROMPTS[:2]))


@pytest.mark.parametrize("kind", ["v_prediction", "flow_prediction"])
def test_soft_tokens_are_seen_and_leave_no_trace(kind):
    task = pipeline_task(kind)
    plain = asked(task)
    handle = soft_tokens(3, layers=1, bins=10)(task)
    tokened = asked(task)
    assert not torch.equal(plain, tokened)
    with torch.no_grad():
        handle.parameters["soft_tokens.tokens"] += 1.0
    assert not torch.equal(tokened, asked(task))
    handle.detach()
    assert torch.equal(plain, asked(task))
    with pytest.raises(ValueError, match="no place"):
        handle.merge()


def test_tokens_of_a_transformer_know_the_time_and_its_blocks():
    task = pipeline_task("flow_prediction")
    handle = soft_tokens(2, layers=5, bins=10)(task)
    tokens, times = (handle.parameters[f"soft_tokens.{name}"] for name in ("tokens", "times"))
    assert tokens.shape == (2, 2, 32)
    assert times.shape == (10, 2, 16)
    before = asked(task, 0), asked(task, 2)
    with torch.no_grad():
        times[9] += 1.0  # of t = 900 ... 999; t = 1000 counts among them
    after = asked(task, 0), asked(task, 2)
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_tokens_are_taken_away_after_their_block():
    """With tokens in the first block alone the second sees as many as without."""
    task = pipeline_task("flow_prediction")
    seen = []
    task.model.transformer_blocks[1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    asked(task)
    soft_tokens(3, layers=1)(task)
    asked(task)
    assert seen[0] == seen[1]


def test_tokens_of_a_unet_begin_as_the_empty_prompt_and_stand_after_the_first():
    task = pipeline_task("v_prediction")
    seen = []
    handle = soft_tokens(2)(task)
    (block,) = blocks_of(task.model, 1)
    block.attentions[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    asked(task)
    text = task.cond(PROMPTS[:2])["encoder_hidden_states"].transpose(0, 1).flatten(0, 1)
    empty = task.cond([""])["encoder_hidden_states"][0, -1, 1:3]
    assert torch.equal(handle.parameters["soft_tokens.tokens"][0], empty)
    assert torch.equal(seen[0][:, 1:3], empty.expand(4, -1, -1))
    assert torch.equal(seen[0][:, :1], text[:, :1])
    assert torch.equal(seen[0][:, 3:], text[:, 1:])


def test_tokens_act_in_the_stock_pipeline_too():
    task = pipeline_task("flow_prediction")
    pipe, options = task.denoiser.denoise.pipe, OPTIONS["flow_prediction"]

    def picture():
        return pipe("a cat", num_inference_steps=2, generator=generator(), output_type="latent", **options).images

    plain = picture()
    handle = soft_tokens(3)(task)
    assert not torch.equal(plain, picture())
    handle.detach()
    assert torch.equal(plain, picture())


def test_soft_tokens_refuse_other_networks():
    with pytest.raises(ValueError, match="expected a UNet2DConditionModel"):
        blocks_of(nn.Linear(2, 2), 1)
    assert issubclass(SoftTokens, nn.Module)


@pytest.mark.parametrize("constraint", [None, 1e-3])
def test_rotations_are_orthogonal_and_merge(constraint):
    task = pipeline_task("epsilon")
    plain = asked(task)
    handle = oft(4, constraint)(task)
    torch.testing.assert_close(asked(task), plain, rtol=1e-4, atol=1e-4)
    layer = task.model.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    norms = layer.base_layer.weight.norm(dim=1)
    for parameter in handle.parameters.values():
        nn.init.normal_(parameter, std=0.3, generator=generator())
    turned = asked(task)
    assert not torch.allclose(turned, plain, atol=1e-3)
    merged = handle.merge()
    torch.testing.assert_close(asked(task), turned, rtol=1e-3, atol=1e-3)
    weight = merged.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q").weight
    torch.testing.assert_close(weight.norm(dim=1), norms, rtol=1e-4, atol=1e-5)


def test_lora_is_the_model_at_its_start_and_the_same_for_one_seed():
    first, second, other = (pipeline_task("epsilon") for _ in range(3))
    plain = asked(first)
    one, two, three = (lora(2, seed=seed)(task) for task, seed in ((first, 0), (second, 0), (other, 1)))
    assert torch.equal(asked(first), plain)
    assert all(torch.equal(value, two.start[name]) for name, value in one.start.items())
    assert any(not torch.equal(value, three.start[name]) for name, value in one.start.items())


def blended(controller, steps=8):
    task, handle = chain(steps)
    control = controller(handle)
    seen = []

    def denoise(x, level, cond):
        seen.append((level.progress, handle.parameters["layers.2.bias"][0].item()))
        return task.denoiser(x, level)

    start = handle.start["layers.2.bias"][0].item()
    with torch.no_grad():
        handle.parameters["layers.2.bias"] += 1.0
        finished(sample(denoise, (2,), vp(steps), control, cond={}, x=torch.zeros(1, 2, dtype=torch.float64)))
    return [(progress, value == start) for progress, value in seen]


def test_the_old_model_runs_first_and_the_tuned_one_last():
    assert blended(lambda handle: combined(handle, 0.75)) == [(k / 8, k < 6) for k in range(8)]


def test_annealed_interpolation_mixes_both():
    seen = blended(lambda handle: annealed(handle, 2.0))
    assert seen[0] == (0.0, True)
    assert seen[1:3] == [(0.125, False), (0.125, True)]
    assert len(seen) == 15
    task, handle = chain(4)
    x, level = torch.ones(3, 2, dtype=torch.float64), vp(4)[2]
    old = task.denoiser(x, level)
    with torch.no_grad():
        handle.parameters["layers.2.bias"] += 1.0
    mixed = annealed(handle, 2.0).wrap(task.denoiser)(x, level, {})
    torch.testing.assert_close(mixed, 0.75 * old + 0.25 * task.denoiser(x, level))


def test_combined_generation_steers_a_pipeline():
    """Before the switch guided by the old model, then the tuned one's conditional branch alone."""
    task = pipeline_task("v_prediction")
    tuned = tune(task, METHODS["draft_k"](lr=1e-2, batch=2, rank=2), Run(steps=1))
    pipe = task.denoiser.denoise.pipe

    def latents(controllers):
        out = steer.Steered(pipe, controllers)(
            "a cat", 1, num_inference_steps=4, guidance_scale=3.0, generator=generator(), output_type="latent"
        )
        return out.candidates.latents

    plain = latents([])
    torch.testing.assert_close(latents(combined(tuned.handle, 0.0, guided=True)), plain, rtol=1e-4, atol=1e-4)
    with tuned.handle.using(tuned.handle.start):
        base = latents([])
    torch.testing.assert_close(latents(combined(tuned.handle, 1.0)), base, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(latents(combined(tuned.handle, 0.5)), base, rtol=1e-3, atol=1e-3)


def test_fractions_outside_the_run_are_refused():
    with pytest.raises(ValueError, match="fraction of the run"):
        combined(None, 1.2)
    with pytest.raises(ValueError, match="more than 0"):
        annealed(None, 0.0)
