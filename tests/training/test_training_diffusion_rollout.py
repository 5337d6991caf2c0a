"""Runs that keep a graph: gradients against finite differences, truncation, checkpointing, plans, cost."""

import pytest
import torch
from diffusion_toys import PROMPTS, chain, generator, pipeline_task
from torch import nn

from steer.diffusion.loop import finished, sample
from steer.diffusion.solve import ddim
from steer.training.diffusion.direct import DirectReward, renoised, sampled
from steer.training.diffusion.rollout import around, from_random, full, last, rollout, single, transitions
from steer.training.handle import own


def loss_of(task, plan, eta=0.5, checkpointed=False):
    make = sampled(plan, batch=3, eta=eta, checkpointed=checkpointed)
    x0, prompts = make(task, generator(1))
    return -task.score(x0, prompts).mean()


def gradient(task, handle, plan, **options):
    found = torch.autograd.grad(loss_of(task, plan, **options), list(handle.parameters.values()))
    return torch.cat([part.flatten() for part in found])


def test_the_gradient_of_a_whole_run_is_that_of_finite_differences():
    task, handle = chain(3)
    exact = gradient(task, handle, full())
    parameters = list(handle.parameters.values())
    start, h = nn.utils.parameters_to_vector(parameters).detach(), 1e-6
    differences = torch.empty_like(exact)
    with torch.no_grad():
        for k in range(len(start)):
            ends = []
            for sign in (1, -1):
                moved = start.clone()
                moved[k] += sign * h
                nn.utils.vector_to_parameters(moved, parameters)
                ends.append(loss_of(task, full()))
            differences[k] = (ends[0] - ends[1]) / (2 * h)
    assert exact.norm() > 0.1
    # central differences: error of order h^2, and eps / h of rounding, 2e-10
    torch.testing.assert_close(exact, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("plan", [full(), last(2)])
def test_checkpointing_changes_no_gradient(plan):
    task, handle = chain(4)
    assert torch.equal(gradient(task, handle, plan), gradient(task, handle, plan, checkpointed=True))


def test_checkpointing_changes_no_gradient_of_a_pipeline():
    task = pipeline_task("v_prediction")
    handle = own(task.model, lambda name, parameter: "attn2.to_v" in name)
    plain = gradient(task, handle, full(), eta=0.0)
    again = gradient(task, handle, full(), eta=0.0, checkpointed=True)
    assert plain.abs().max() > 1e-6
    torch.testing.assert_close(plain, again, rtol=1e-5, atol=1e-5 * plain.abs().max().item())


def test_no_graph_before_the_truncation_and_none_leads_into_it():
    task, _ = chain(5)
    with_graph = [step.x0.requires_grad for step in transitions(task, None, task.noise(2, generator()), 3, 5)]
    assert with_graph == [False, False, False, True, True]
    (third, fourth) = list(transitions(task, None, task.noise(2, generator()), 3, 5))[2:4]
    assert not fourth.x.requires_grad
    assert not third.after.requires_grad


def test_a_truncated_gradient_is_that_of_a_run_begun_at_the_detached_state():
    task, handle = chain(5)
    x = task.noise(3, generator())
    states = [step.x for step in transitions(task, None, x, 5, 5)]
    parameters = list(handle.parameters.values())
    whole = rollout(task, None, x, 3, 5).sum()
    tail = rollout(task, None, states[3], 0, 5, begin=3).sum()
    for one, other in zip(torch.autograd.grad(whole, parameters), torch.autograd.grad(tail, parameters)):
        assert torch.equal(one, other)


def test_a_run_is_that_of_the_sampler():
    task, _ = chain(6)
    x = task.noise(4, generator())
    with torch.no_grad():
        mine = rollout(task, None, x, 6, 6)
        theirs = finished(sample(task.denoiser, (2,), task.schedule, solver=ddim(0.0), prompts=["a"] * 4, x=x))
    assert torch.equal(mine, theirs.x)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_a_run_of_a_pipeline_is_the_pipelines_own(kind):
    task = pipeline_task(kind, pairs=False)
    noise = task.noise(2, generator())
    with torch.no_grad():
        mine = rollout(task, task.cond(PROMPTS[:2]), task.schedule[0].sigma * noise, task.steps, task.steps)
    pipe, size = task.denoiser.denoise.pipe, {}
    if kind == "flow_prediction":
        size = {"max_sequence_length": 8, "height": 16, "width": 16}
    options = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent", **size}
    theirs = pipe(list(PROMPTS[:2]), latents=noise, **options).images
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def test_a_fixed_seed_gives_equal_bits():
    task, _ = chain(5)
    one, other = (sampled(from_random(), 4, eta=1.0)(task, generator(7))[0] for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, sampled(from_random(), 4, eta=1.0)(task, generator(8))[0])


def drawn(plan, steps=20, times=400):
    source = generator()
    return [plan(steps, source) for _ in range(times)]


def test_plans_say_what_they_promise():
    assert drawn(full())[0] == (0, 20)
    assert drawn(last(3))[0] == (17, 20)
    assert drawn(last(30))[0] == (0, 20)
    assert {first for first, _ in drawn(from_random())} == set(range(20))
    assert {m for m, stop in drawn(single(0.75)) if stop == m + 1} == set(range(15, 20))
    assert {m for m, _ in drawn(single(0.5, 0.6), steps=10)} == {5}
    firsts = [first for first, _ in drawn(around(0.84, 0.1))]
    assert min(firsts) >= 1
    assert max(firsts) < 20
    assert abs(sum(firsts) / len(firsts) - 16.5) < 0.5  # the mean of 16.8 +- 2 cut at 19
    assert {plan for steps in (1, 2, 3) for plan in drawn(single(), steps, 20)} == {(0, 1), (1, 2), (2, 3)}
    assert around()(1, generator()) == (0, 1)


def test_plans_refuse_what_is_none():
    with pytest.raises(ValueError, match="at least 1"):
        last(0)
    with pytest.raises(ValueError, match="0 <= start < stop <= 1"):
        single(0.8, 0.2)


def test_every_row_is_counted():
    task, handle = chain(5)
    loss = DirectReward(handle, task, make=sampled(last(2), batch=3))
    _, noted = loss(generator(), 0)
    assert (noted["rows"], noted["backward_rows"], noted["reward_calls"]) == (15, 6, 3)
    loss = DirectReward(handle, task, make=sampled(last(2), batch=3, checkpointed=True))
    assert loss(generator(), 0)[1]["rows"] == 15 + 6  # and again in the backward pass
    task.recompute = False
    assert loss(generator(), 0)[1]["rows"] == 15
    loss = DirectReward(handle, task, make=renoised(2, batch=3))
    _, noted = loss(generator(), 0)
    assert (noted["rows"], noted["backward_rows"], noted["reward_calls"]) == (15 + 6, 6, 6)
    guided = pipeline_task(guidance=2.0)
    with torch.no_grad():
        guided.x0(guided.noise(3, generator()), guided.schedule[0], guided.cond(PROMPTS[:3]))
    assert guided.ledger.rows == 6


def test_the_single_step_returns_the_estimate_of_that_step():
    task, _ = chain(4)
    x = task.noise(2, generator())
    second = list(transitions(task, None, x, 4, 4))[1]
    assert torch.equal(rollout(task, None, x, 1, 2), second.x0)


def lv_gradients(n: int, repeats: int = 300) -> torch.Tensor:
    """Gradients of DRaFT-LV with the run's own result held fixed and only the new noise redrawn."""
    task, handle = chain(4)
    net, fixed = task.denoiser, torch.tensor([0.3, -0.2], dtype=torch.float64)
    task.denoiser = lambda x, level, cond: net(x, level) if torch.is_grad_enabled() else fixed.expand_as(x)
    found = []
    for seed in range(repeats):
        made, prompts = renoised(n, batch=2)(task, generator(seed))
        value = -task.score(made, prompts).mean()
        parts = torch.autograd.grad(value, list(handle.parameters.values()))
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


def test_two_new_noises_halve_the_variance_of_the_gradient():
    one, two = (lv_gradients(n).var(0).sum().item() for n in (1, 2))
    assert 0.35 < two / one < 0.65
