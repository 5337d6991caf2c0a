"""A pipeline as a task: conditioning with and without a graph, pictures through the encoder, scores, freezing."""

import pytest
import torch
from diffusion_toys import OPTIONS, PROMPTS, bright, generator, pipeline_of, pipeline_task

from steer.rewards import Compressibility, FromCallable
from steer.training.diffusion import DiffusionTask
from steer.training.diffusion import task as module

KINDS = ("v_prediction", "flow_prediction")


@pytest.mark.parametrize("kind", KINDS)
def test_the_conditioning_is_the_pipelines_and_is_remembered(kind):
    task = pipeline_task(kind)
    found = task.cond(PROMPTS[:2])
    together = task.encode(PROMPTS[:2])
    assert set(found) == set(together)
    for name in found:
        assert found[name].shape[:2] == (2, 2)
        torch.testing.assert_close(found[name], together[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(task.cond(PROMPTS[1:2])[name], found[name][1:])
        assert torch.equal(task.cond(PROMPTS[:2], guided=False)[name], found[name][:, 1:])
    assert list(task.known) == list(PROMPTS[:2])
    assert not any(leaf.requires_grad for leaf in found.values())


def test_only_so_many_prompts_are_remembered(monkeypatch):
    monkeypatch.setattr(module, "KEPT_PROMPTS", 2)
    task = pipeline_task("v_prediction")
    first = task.cond(PROMPTS[:1])
    task.cond(PROMPTS)
    assert len(task.known) <= 2
    assert all(torch.equal(first[name], again) for name, again in task.cond(PROMPTS[:1]).items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_encoder_under_training_is_asked_anew_and_gets_a_gradient(kind):
    task = pipeline_task(kind)
    before = task.cond(PROMPTS[:2])["encoder_hidden_states"]
    weight = next(p for name, p in task.text.named_parameters() if "q_proj.weight" in name).requires_grad_()
    x0 = task.x0(task.noise(2, generator()), task.schedule[1], task.cond(PROMPTS[:2]))
    (slope,) = torch.autograd.grad(x0.sum(), weight)
    assert slope.abs().max() > 0
    with torch.no_grad():
        weight += torch.randn(weight.shape, generator=generator())
        after = task.cond(PROMPTS[:2])["encoder_hidden_states"]
    assert not after.requires_grad
    assert not torch.allclose(after, before, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_become_latents_with_captions(kind):
    pipe = pipeline_of(kind)
    pictures = torch.rand(3, 3, 16, 16, generator=generator())
    options = {"num_inference_steps": 2, **OPTIONS.get(kind, {})}
    task = DiffusionTask.of(pipe, "a cat", real=(pictures, PROMPTS[:3]), **options)
    assert task.prompts == ("a cat",)
    assert task.real.captions == PROMPTS[:3]
    with torch.no_grad():
        mode = pipe.vae.encode(2 * pictures - 1).latent_dist.mode()
    config = pipe.vae.config
    expected = (mode - (config.get("shift_factor") or 0)) * config.scaling_factor
    torch.testing.assert_close(task.real.latents, expected, rtol=1e-4, atol=1e-5)
    index, drawn = task.real.draw(5, generator())
    assert torch.equal(drawn, task.real.latents[index])
    with pytest.raises(ValueError, match="one each"):
        DiffusionTask.of(pipe, "a cat", real=(pictures, PROMPTS[:2]), **options)


def test_all_networks_are_frozen():
    task = pipeline_task("v_prediction")
    modules = [m for m in task.denoiser.denoise.pipe.components.values() if isinstance(m, torch.nn.Module)]
    assert not any(parameter.requires_grad for m in modules for parameter in m.parameters())


def test_scores_carry_a_gradient_where_the_reward_has_one():
    smooth = pipeline_task("v_prediction", reward=FromCallable(bright, prompts=False, differentiable=True))
    x0 = smooth.noise(2, generator()).requires_grad_()
    (slope,) = torch.autograd.grad(smooth.score(x0, PROMPTS[:2]).sum(), x0)
    assert slope.abs().max() > 0
    rough = pipeline_task("v_prediction", reward=Compressibility(75))
    assert not rough.score(x0, PROMPTS[:2]).requires_grad
    assert (rough.ledger.decodes, rough.ledger.reward_calls) == (2, 2)
