"""Losses against values worked out by hand: denoising, contrast, heads, erasing, levels, refusals."""

import pytest
import torch
from diffusion_toys import PROMPTS, chain, generator, pipeline_task

from steer.diffusion.denoise import from_x0
from steer.diffusion.pipelines.levels import prediction_for
from steer.diffusion.schedule import flow, vp
from steer.diffusion.state import Level
from steer.training.diffusion import METHODS, DiffusionTask, Pairs
from steer.training.diffusion.contrast import Contrast, contrastive
from steer.training.diffusion.denoising import Denoising, content_first, dropped, exponential, noised, squared_error
from steer.training.diffusion.direct import DirectReward, from_real, hinge, maximise, sampled, towards
from steer.training.diffusion.erasing import Erasing, salient
from steer.training.diffusion.levels import at_step, between, prediction_weight, training_levels
from steer.training.diffusion.negative import NegativeAware
from steer.training.diffusion.policy import PolicyGradient
from steer.training.diffusion.rollout import last, single, transitions
from steer.training.handle import own

KINDS = ("epsilon", "v_prediction", "flow_prediction", "sample")


def pairs(count=6):
    return Pairs(
        torch.randn(count, 2, generator=generator(), dtype=torch.float64), tuple(f"p{k}" for k in range(count))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_squared_error_is_one_of_the_models_own_prediction(kind):
    level = flow(5)[2] if kind == "flow_prediction" else vp(5)[2]
    x, x0, other = torch.randn(3, 4, 2, generator=generator(), dtype=torch.float64)
    gap = from_x0(x0, x, level, kind) - from_x0(other, x, level, kind)
    expected = gap.square().mean()
    assert (prediction_weight(level, kind) * (x0 - other).square()).mean().item() == pytest.approx(expected.item())


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DDIMScheduler", "FlowMatchEulerDiscreteScheduler"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_training_levels_are_those_of_the_scheduler(scheduler, kind):
    import diffusers

    options = {} if scheduler.startswith("Flow") else {"prediction_type": kind}
    made = getattr(diffusers, scheduler)(**options)
    levels = training_levels(made)
    assert len(levels) == 1000
    assert levels[0].sigma > levels[-1].sigma > 0
    clean, noise = torch.randn(2, 1, 4, 2, 2, generator=generator())
    if scheduler == "DDIMScheduler":
        for level in (levels[10], levels[900]):
            theirs = made.add_noise(clean, noise, torch.tensor([level.t]))
            torch.testing.assert_close(level.alpha * clean + level.sigma * noise, theirs)
    gaps = [prediction_for(made, each, clean, levels[300]) for each in (clean, noise)]
    expected = (gaps[0] - gaps[1]).square().mean().item()
    own = "flow_prediction" if scheduler.startswith("Flow") else kind
    found = prediction_weight(levels[300], own) * (clean - noise).square().mean().item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_an_unknown_kind_and_an_empty_window_are_refused():
    with pytest.raises(ValueError, match="expected one of"):
        prediction_weight(vp(4)[1], "velocity")
    with pytest.raises(ValueError, match="no noise level"):
        between(0.5, 0.5)(chain()[0], generator())
    with pytest.raises(ValueError, match="fraction in"):
        at_step(1.5)(chain()[0], generator())


def test_levels_are_drawn_from_the_window():
    task, _ = chain()
    found = {between(0.25, 0.5)(task, generator(seed)).progress for seed in range(100)}
    assert found == {level.progress for level in task.levels if 0.25 <= level.progress < 0.5}
    assert at_step(0.75)(task, generator()) == task.schedule[2]
    assert at_step(1.0)(task, generator()) == task.schedule[2]


def test_the_denoising_loss_is_that_of_its_draws():
    task, handle = chain(real=pairs(), kind="epsilon")
    value, _ = Denoising(handle, task, batch=4, levels=2, dropout=0.0).loss(generator(3))
    source, errors = generator(3), []
    for _ in range(2):
        level = between()(task, source)
        _, wanted = task.real.draw(2, source)
        eps = torch.randn(2, 2, generator=source, dtype=torch.float64)
        torch.rand(2, generator=source)
        x = level.alpha * wanted + level.sigma * eps
        found = (x - level.alpha * task.x0(x, level, None)) / level.sigma
        errors.append((found - eps).square().mean())
    assert value.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_the_offset_is_one_number_a_channel():
    task = pipeline_task(pairs=False)
    clean = torch.zeros(3, *task.shape)
    level = Level(0.6, 0.8)
    plain, shifted = (noised(task, clean, level, generator(), offset) for offset in (0.0, 0.5))
    apart = (shifted - plain).flatten(2)
    assert (apart.std(2) < 1e-6).all()
    assert apart[..., 0].unique().numel() == 12
    torch.testing.assert_close(plain, 0.8 * task.noise(3, generator()))


def test_weights_are_those_of_reward_weighted_regression():
    weights = exponential(2.0)(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    spread = torch.tensor([0.0, 1.0, 2.0, 3.0]).std(correction=0)
    assert weights.mean().item() == pytest.approx(1)
    assert (weights[1] / weights[0]).log().item() == pytest.approx(1 / (2 * spread.item()), rel=1e-5)
    assert torch.equal(exponential()(torch.ones(3)), torch.ones(3))
    with pytest.raises(ValueError, match="more than 0"):
        exponential(0.0)
    task, handle = chain(real=pairs())
    loss = Denoising(handle, task, weights=exponential(0.5), dropout=0.0)
    torch.testing.assert_close(loss.importance, exponential(0.5)(task.score(task.real.latents, task.real.captions)))


def test_content_is_learnt_where_it_is_noisy():
    task, _ = chain(real=pairs(), content=pairs(3))
    source = content_first(0.3)
    assert source(task, Level(0.1, 0.9, progress=0.29)) is task.content
    assert source(task, Level(0.1, 0.9, progress=0.3)) is task.real


def test_dropped_captions_become_the_unconditional_branch():
    cond = {"text": torch.arange(12.0).reshape(3, 2, 2)}
    found = dropped(cond, torch.tensor([True, False, False]))["text"]
    assert found.tolist() == [[[0, 1]], [[6, 7]], [[10, 11]]]


def test_contrast_is_the_cross_entropy_of_bounded_logits():
    errors = torch.tensor([[0.1, 0.3], [0.2, 0.2]])
    logits = 2.0 * torch.exp(-errors / 0.5)
    expected = -(logits[0, 0] - logits[0].logsumexp(0) + logits[1, 1] - logits[1].logsumexp(0)) / 2
    assert contrastive(errors, 2.0, 0.5).item() == pytest.approx(expected.item())


def test_contrast_compares_every_picture_with_every_caption_at_one_noise():
    task = pipeline_task("v_prediction")
    loss = Contrast(None, task, batch=3)
    errors = loss.errors(generator())
    index = loss._distinct(source := generator())
    level = between()(task, source)
    x = level.alpha * task.real.latents[index] + level.sigma * task.noise(1, source)
    for j, k in enumerate(index):
        cond = task.cond([PROMPTS[k]] * 3, guided=False)
        expected = squared_error(task, task.x0(x, level, cond), task.real.latents[index], level)
        torch.testing.assert_close(errors[:, j], expected, rtol=1e-4, atol=1e-5)
    task.real = Pairs(task.real.latents, ("a", "a", "a", "b"))
    assert len({task.real.captions[k] for k in Contrast(None, task, batch=2)._distinct(generator())}) == 2
    with pytest.raises(ValueError, match="different captions"):
        Contrast(None, task, batch=3)


def test_heads():
    rewards = torch.tensor([1.0, 3.0])
    assert maximise(rewards).tolist() == [-1, -3]
    assert towards(2.5)(rewards).tolist() == [1.5, 0.5]
    assert hinge(2.0)(rewards).tolist() == [1, 0]


def test_real_pictures_begin_where_they_are_noised_to():
    task, _ = chain(8, real=pairs())
    seen = []
    denoise = task.denoiser
    task.denoiser = lambda x, level, cond: seen.append(level.progress) or denoise(x, level)
    from_real(single(0.75), 0.75, 2)(task, generator())
    assert seen[0] == 0.75
    assert len(seen) <= 2


def test_the_anchor_is_added():
    task, handle = chain(4, real=pairs())
    options = {"make": sampled(last(1), 2), "scale": 0.5}
    bare, _ = DirectReward(handle, task, **options).loss(generator())
    held, noted = DirectReward(handle, task, anchor=0.2, **options).loss(generator())
    assert held.item() == pytest.approx(bare.item() + 0.5 * 0.2 * noted["denoising"])


def test_erasing_keeps_what_is_early_and_reverses_what_is_late():
    """Untrained, p = p*: the early part is 0, the late one |2 (p(c) - p(0))|^2."""
    task = pipeline_task("v_prediction")
    handle = own(task.model, lambda name, parameter: "attn2" in name)
    value, _ = Erasing(handle, task, concept=PROMPTS[0], switch=0.5).loss(generator(4))
    source = generator(4)
    late = int(torch.randint(2, 4, (), generator=source))
    int(torch.randint(2, (), generator=source))
    cond, x = task.cond(PROMPTS[:1]), task.noise(1, source)
    with torch.no_grad():
        x = [step.x for step in transitions(task, cond, x, 4, late + 1)][late]
        free, asked = (task.x0(x, task.schedule[late], {k: v[:, b : b + 1] for k, v in cond.items()}) for b in (0, 1))
    expected = squared_error(task, 2 * asked, 2 * free, task.schedule[late]).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-3)
    assert value.item() > 1e-6
    start = salient(lambda handle, task: Erasing(handle, task, concept="a", switch=0.5), 0.5, losses=1, seeds=2)
    masks = start(handle, task)
    assert set(masks) == set(handle.parameters)
    assert all(mask.float().mean() <= 0.51 for mask in masks.values())
    assert all(parameter.grad is None for parameter in handle.parameters.values())
    task = pipeline_task("v_prediction", guidance=1.0)
    with pytest.raises(ValueError, match="guidance_scale > 1"):
        Erasing(handle, task, concept="a").loss(generator())
    with pytest.raises(ValueError, match="fraction of the run"):
        Erasing(handle, task, concept="a", switch=1.0)


def test_refusals_say_what_to_do():
    task, handle = chain(4)
    task.reward.differentiable = False
    with pytest.raises(ValueError, match="ddpo"):
        DirectReward(handle, task, make=sampled(last(1)))
    with pytest.raises(ValueError, match="no more prompts than there are"):
        PolicyGradient(handle, task, prompts=9)
    with pytest.raises(ValueError, match="real="):
        Denoising(handle, task).loss(generator())
    with pytest.raises(ValueError, match="whole number"):
        Denoising(handle, task, batch=5, levels=2)
    with pytest.raises(ValueError, match="0 < mix"):
        NegativeAware(handle, task, prompts=1, mix=0.0)
    with pytest.raises(ValueError, match="needs a reward"):
        DiffusionTask(task.model, task.denoiser, task.schedule, (2,)).score(torch.zeros(1, 2), [""])
    with pytest.raises(ValueError, match="one each"):
        Pairs(torch.zeros(2, 2), ("a",))
    with pytest.raises(ValueError, match="text encoder"):
        METHODS["texforce"]().phases[0].parametrise(task)
