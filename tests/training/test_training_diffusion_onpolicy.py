"""Losses on own samples against values worked out by hand: NFT, advantages, the critic, the buffer, penalties."""

import pytest
import torch
from diffusion_toys import chain, generator

from steer.training.diffusion.advantages import group_statistics, idle_share, over_batch, over_group, over_history
from steer.training.diffusion.critic import Critic
from steer.training.diffusion.denoising import noised, squared_error
from steer.training.diffusion.negative import NegativeAware, mirrored, optimality
from steer.training.diffusion.policy import PolicyGradient


def nft_loss(normalised: bool, advantage: float):
    """NFT with one constant advantage, at the weights that drew the samples, and what it is worked out from."""
    task, handle = chain(4, kind="v_prediction")
    constant = lambda rewards, prompts, memory: torch.full_like(rewards, advantage)  # noqa: E731
    options = {"mix": 0.4, "levels": 1, "kl_weight": 0.0, "normalised": normalised, "advantage": constant}
    loss = NegativeAware(handle, task, prompts=2, each=3, **options)
    samples, source = loss.draw(generator()), generator(5)
    value, _ = loss.learn(samples, source)
    source = generator(5)
    level = task.schedule[torch.randperm(4, generator=source)[0]]
    x = noised(task, samples.final, level, source)
    return value, task, handle, samples, level, x


@pytest.mark.parametrize("advantage", [3.0, 0.0, -2.0])
def test_the_push_at_the_start_is_that_of_the_denoising_loss(advantage):
    """The paper's loss has there the gradient b (2 q - 1) of |v - u|^2; none at q = 1/2."""
    value, task, handle, samples, level, x = nft_loss(False, advantage)
    q = float(optimality(torch.tensor(advantage)))
    parameters = list(handle.parameters.values())
    found = torch.autograd.grad(value, parameters)
    plain = squared_error(task, task.x0(x, level, None), samples.final, level).mean()
    for one, other in zip(found, torch.autograd.grad(plain, parameters)):
        torch.testing.assert_close(one, 0.4 * (2 * q - 1) * other, rtol=1e-5, atol=1e-6)


def test_the_normalised_push_at_the_start():
    """5 (2 q - 1) sigma^2 / w of the gradient of |v - u|^2 for each sample, w its mean |x0 - x|: b cancels."""
    value, task, handle, samples, level, x = nft_loss(True, 3.0)
    parameters = list(handle.parameters.values())
    x0 = task.x0(x, level, None)
    weights = (x0 - samples.final).detach().abs().mean(1)
    errors = squared_error(task, x0, samples.final, level)  # of v: |x0 - x|^2 / sigma^2
    expected = (5 * (2 * 0.8 - 1) * level.sigma**2 / weights * errors).mean()
    for one, other in zip(torch.autograd.grad(value, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_optimum_of_nft_is_the_old_policy_and_twice_the_mean_push():
    """For one x_t and weighted x0: v = v_old + (2 / b) E[q (u - v_old)], found by solving for the gradient's zero."""
    b, q = 0.3, torch.rand(5, generator=generator(), dtype=torch.float64)
    u, old = torch.randn(2, 5, generator=generator(1), dtype=torch.float64)
    old = u.mean()  # v_old = E[u | x_t]
    v = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def loss(v):
        plus, minus = mirrored(v, old, b)
        return (q * (plus - u) ** 2 + (1 - q) * (minus - u) ** 2).mean()

    slope = torch.autograd.grad(loss(v), v, create_graph=True)[0]
    best = v - slope / torch.autograd.grad(slope, v)[0]  # quadratic: one step of Newton's
    assert best.item() == pytest.approx((old + 2 / b * (q * (u - old)).mean()).item(), abs=1e-8)


def test_the_drawing_policy_follows_slowly():
    task, handle = chain(4)
    loss = NegativeAware(handle, task, prompts=1, each=2, updates=1, slope=0.1, limit=0.15)
    start = handle.weights()
    for step, decay in enumerate((0.0, 0.1, 0.15)):
        before = {name: value.clone() for name, value in loss.old.items()}
        for parameter in handle.parameters.values():
            parameter.data += 1.0
        loss(generator(step), step)
        expected = {name: decay * before[name] + (1 - decay) * handle.parameters[name].detach() for name in start}
        assert all(torch.allclose(loss.old[name], expected[name], rtol=1e-12) for name in start)


def test_optimality_is_between_zero_and_one():
    assert optimality(torch.tensor([-7.0, -5.0, 0.0, 2.5, 9.0])).tolist() == [0, 0, 0.5, 0.75, 1]


REWARDS, GROUPS = torch.tensor([1.0, 3.0, 10.0, 10.0]), torch.tensor([0, 0, 1, 1])


def test_advantages():
    assert over_batch()(REWARDS, GROUPS, {}).tolist() == pytest.approx(
        ((REWARDS - 6) / REWARDS.std(correction=0)).tolist(), abs=1e-5
    )
    assert over_group("none")(REWARDS, GROUPS, {}).tolist() == pytest.approx([-1, 1, 0, 0], abs=1e-5)
    assert over_group("group")(REWARDS, GROUPS, {}).tolist() == pytest.approx([-1, 1, 0, 0], abs=1e-5)
    spread = REWARDS.std(correction=0).item()
    assert over_group("batch")(REWARDS, GROUPS, {}).tolist() == pytest.approx([-1 / spread, 1 / spread, 0, 0], abs=1e-5)
    assert over_group("none", clip=0.5)(REWARDS, GROUPS, {}).tolist() == [-0.5, 0.5, 0, 0]
    mean, std = group_statistics(REWARDS, GROUPS)
    assert mean.tolist() == [2, 2, 10, 10]
    assert std.tolist() == [1, 1, 0, 0]
    assert idle_share(REWARDS, GROUPS) == 0.5


def test_a_prompts_history_takes_over_once_it_is_long_enough():
    memory, advantage = {}, over_history(window=3, minimum=3)
    first = advantage(REWARDS, GROUPS, memory)
    torch.testing.assert_close(first, over_batch()(REWARDS, GROUPS, {}))
    second = advantage(torch.tensor([5.0, 10.0]), torch.tensor([0, 1]), memory)
    assert memory[0].tolist() == [1, 3, 5]
    assert memory[1].tolist() == [10, 10, 10]
    assert second.tolist() == pytest.approx([2 / torch.tensor([1.0, 3.0, 5.0]).std(correction=0).item(), 0], abs=1e-5)
    advantage(torch.tensor([7.0]), torch.tensor([0]), memory)
    assert memory[0].tolist() == [3, 5, 7]


def test_the_critic_learns_a_reward_that_it_can_see():
    seen = torch.randn(256, 3, generator=generator())
    rewards = seen[:, 0]
    critic = Critic(3, lr=1e-2, updates=200)
    critic.learn(seen, rewards, generator())
    assert torch.corrcoef(torch.stack([critic(seen), rewards]))[0, 1] > 0.9
    again = Critic(3)
    again.load_state_dict(critic.state_dict())
    assert torch.equal(again(seen), critic(seen))


def test_the_buffer_keeps_the_last_batches():
    task, handle = chain(4)
    loss = PolicyGradient(handle, task, prompts=1, each=3, updates=2, replay=2, share=0.4, batch=2, critic=Critic)
    sizes = []
    for step in range(6):
        loss(generator(step), step)
        sizes.append(len(loss.samples))
    assert sizes == [3, 3, 6, 6, 6, 6]


def test_the_penalty_is_zero_at_the_start_and_grows():
    task, handle = chain(4)
    for kl in ("step", "prediction"):
        loss = PolicyGradient(handle, task, prompts=2, each=2, kl_weight=1.0, kl=kl)
        handle.load(handle.start)
        assert loss(generator(), 0)[1]["kl"] == 0
        with torch.no_grad():
            handle.parameters["layers.2.bias"] += 0.1
        assert loss(generator(), 0)[1]["kl"] > 1e-4
