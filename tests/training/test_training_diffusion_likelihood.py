"""Densities of steps, and what policy gradients and reward differences must be on chains that are known."""

import math

import pytest
import torch
from diffusion_toys import Quadratic, chain, generator
from torch import nn
from torch.distributions import Normal, kl_divergence

from steer.diffusion.schedule import flow, vp
from steer.diffusion.solve import noise_scale, transition
from steer.training.diffusion import DiffusionTask
from steer.training.diffusion.likelihood import log_prob, step_kl, stochastic
from steer.training.diffusion.policy import PolicyGradient, clipped
from steer.training.diffusion.regression import RewardDifference, pair_loss
from steer.training.handle import own

SCHEDULES = {"vp": vp(5), "flow": flow(5)}


def step_of(name, eta=0.7):
    level, to = SCHEDULES[name][1:3]
    x, x0, other, z = torch.randn(4, 3, 4, 2, 2, generator=generator(), dtype=torch.float64)
    scale = noise_scale(level, to, eta)
    return x, x0, other, transition(x, x0, level, to, scale, z), level, to, scale


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_log_probabilities_are_the_closed_form(name, reduce):
    x, x0, _, after, level, to, scale = step_of(name)
    eps = (x - level.alpha * x0) / level.sigma
    mean = to.alpha * x0 + math.sqrt(to.sigma**2 - scale**2) * eps
    each = -((after - mean) ** 2) / (2 * scale**2) - math.log(scale) - math.log(2 * math.pi) / 2
    expected = each.flatten(1).mean(1) if reduce == "mean" else each.flatten(1).sum(1)
    found = log_prob(after, x, x0, level, to, 0.7, reduce)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)  # it is worked out in float32


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_divergence_of_steps_is_that_of_normals(name):
    x, x0, other, _, level, to, scale = step_of(name)
    ours, theirs = (Normal(transition(x, each, level, to, scale, None), scale) for each in (x0, other))
    expected = kl_divergence(ours, theirs).flatten(1).sum(1)
    found = step_kl(x0, other, x, level, to, 0.7, "sum")
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_no_density_where_no_noise_is_drawn():
    x, x0, _, after, level, to, _ = step_of("vp")
    with pytest.raises(ValueError, match="draws no noise"):
        log_prob(after, x, x0, level, to, eta=0.0)
    with pytest.raises(ValueError, match="draws no noise"):
        log_prob(after, x, x0, SCHEDULES["vp"][-2], SCHEDULES["vp"][-1])
    with pytest.raises(ValueError, match="no step draws noise"):
        stochastic(SCHEDULES["vp"], eta=0.0)
    assert stochastic(SCHEDULES["vp"], eta=1.0) == [0, 1, 2, 3]


def test_the_ratio_is_clipped_in_the_max_form():
    logp = torch.tensor([1.2, 1.2, 0.8, 0.8, 1.05]).log()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss, beyond = clipped(logp, torch.zeros(5), advantages, clip=0.1)
    torch.testing.assert_close(loss, torch.tensor([-1.1, 1.2, -0.8, 0.9, -2.1]))
    assert beyond.tolist() == [True, False, False, True, False]


def test_at_the_policy_that_drew_the_runs_all_ratios_are_one():
    task, handle = chain(4)
    loss = PolicyGradient(handle, task, prompts=2, each=8)
    value, noted = loss(generator(), 0)
    samples = loss.samples
    assert noted["clipped"] == 0
    # all ratios 1: the loss is minus the mean advantage, which a z-score makes 0
    torch.testing.assert_close(value, -samples.advantages.mean().to(value), atol=1e-5, rtol=0)


class Shift(nn.Module):
    """x0 = 0.7 x + shift: with the last step it takes what the noisy ones did to the result."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([0.3, -0.4], dtype=torch.float64))

    def forward(self, x, level, cond=None):
        return 0.7 * x + self.shift


def centred(rewards, prompts, memory):
    return rewards - rewards.mean()


def policy(reduce: str, runs: int) -> tuple[PolicyGradient, Shift]:
    net = Shift()
    task = DiffusionTask(net, net, vp(3), (2,), reward=Quadratic())
    options = {"advantage": centred, "reduce": reduce, "clip": 1e9}
    return PolicyGradient(own(net), task, prompts=1, each=runs, **options), net


def policy_gradient(reduce: str, runs: int, seed: int) -> torch.Tensor:
    """d/dshift of the expected reward by the loss, which is a mean over steps where the chain's density is a sum."""
    loss, net = policy(reduce, runs)
    (found,) = torch.autograd.grad(loss(generator(seed), 0)[0], net.shift)
    return -found * len(loss.noisy)


def finite_difference(runs: int, seed: int, h: float = 1e-3) -> torch.Tensor:
    """The same by moving the shift, at all steps but the last, which draws no noise and has no density."""
    loss, net = policy("sum", runs)
    last, found = loss.task.schedule[2], []
    for k in range(2):
        move = h * torch.eye(2, dtype=torch.float64)[k]
        ends = []
        for sign in (1, -1):
            loss.task.denoiser = lambda x, level, cond, by=sign * move: net(x, level) + (by if level != last else 0)
            ends.append(loss.draw(generator(seed)).rewards.mean())
        found.append((ends[0] - ends[1]) / (2 * h))
    return torch.stack(found)


def test_the_policy_gradient_is_that_of_the_expected_reward():
    seeds, runs = range(20), 4000
    ours = torch.stack([policy_gradient("sum", runs, seed) for seed in seeds])
    theirs = torch.stack([finite_difference(runs, seed) for seed in seeds])
    error = ((ours.var(0) + theirs.var(0)) / len(seeds)).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error).all()
    assert (theirs.mean(0).abs() > 20 * error).all()  # so that no gradient at all would not pass


def test_the_mean_form_is_the_sum_form_by_the_dimensions():
    found = [policy_gradient(reduce, 64, 0) for reduce in ("sum", "mean")]
    torch.testing.assert_close(found[0], 2 * found[1], rtol=1e-4, atol=1e-5)


def test_pairs_are_compared_as_by_hand():
    ratio = torch.tensor([[0.2, 0.4], [0.0, 0.0], [0.1, -0.3]], dtype=torch.float64)
    old = torch.zeros(3, 2, dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    # pairs (0, 1) and (0, 2), 1 and 2 are equal; h = .3, 0, -.1; r / beta = 2; clipped to .1: h = .1, 0, 0
    plain = [(0.3 - 0 - 2) ** 2, (0.3 + 0.1 - 2) ** 2]
    near = [(0.1 - 0 - 2) ** 2, (0.1 - 0 - 2) ** 2]
    expected = sum(map(max, zip(plain, near))) / 2
    assert pair_loss(ratio, old, rewards, beta=0.5, clip=0.1).item() == pytest.approx(expected)
    wide = pair_loss(ratio, old, rewards, beta=0.5, clip=10.0, over="sum").item()
    assert wide == pytest.approx(((0.6 - 2) ** 2 + (0.6 + 0.2 - 2) ** 2) / 2)
    assert pair_loss(ratio, old, torch.ones(3), beta=0.5, clip=0.1).item() == 0


def test_tilted_kernels_are_the_optimum_of_reward_differences():
    """x_{t-1} = A_t x_t + sigma_t z with r = k x_0: means shift by sigma_t^2 (k / beta) prod A, the loss is 0."""
    a, sigma, k, beta = [0.9, 0.7, 1.1], [0.5, 0.8, 0.3], 1.7, 0.6
    x = torch.full((6,), 0.4, dtype=torch.float64)  # all begin at one
    ratios = []
    for t in range(3):
        shift = sigma[t] ** 2 * k / beta * math.prod(a[t + 1 :])
        mean = a[t] * x
        x_next = mean + shift + sigma[t] * torch.randn(6, generator=generator(t), dtype=torch.float64)
        ratios.append(Normal(mean + shift, sigma[t]).log_prob(x_next) - Normal(mean, sigma[t]).log_prob(x_next))
        x = x_next
    ratio = torch.stack(ratios, 1)
    assert pair_loss(ratio, ratio, k * x, beta, clip=1e9, over="sum").item() < 1e-24
    assert pair_loss(ratio, ratio, k * x, 2 * beta, clip=1e9, over="sum").item() > 1e-2


def test_reward_differences_of_the_untrained_model_are_the_rewards():
    """All log-ratios are 0 at the start, so the loss is the mean squared difference of rewards."""
    task, handle = chain(4)
    loss = RewardDifference(handle, task, prompts=2, each=3, beta=2.0)
    value, noted = loss(generator(), 0)
    groups = loss.samples.rewards.reshape(2, 3)
    expected = []
    for rewards in groups:
        gaps = rewards[:, None] - rewards[None, :]
        expected.append((gaps[gaps > 0] / 2).square().mean())
    torch.testing.assert_close(value.float(), torch.stack(expected).mean().float())
    assert noted["clipped"] == 0
    assert isinstance(task.reward, Quadratic)
    assert loss.samples.x.shape == (6, 3, 2)


def test_runs_of_a_prompt_may_begin_at_one_noise():
    task, handle = chain(4)
    samples = RewardDifference(handle, task, prompts=2, each=3, shared=True).draw(generator())
    first = samples.x[:, 0].reshape(2, 3, 2)
    assert torch.equal(first, first[:, :1].expand_as(first))
    assert not torch.equal(first[0], first[1])
    with pytest.raises(ValueError, match="at least 2"):
        RewardDifference(handle, task, prompts=2, each=1)
