"""Black-box rewards on a mixture of two Gaussians with a small network beside its exact denoiser."""

import pytest
import torch
from diffusion_toys import generator
from torch import Tensor, nn

from steer.diffusion.denoise import GaussianMixture
from steer.diffusion.schedule import vp
from steer.training import Run, fit
from steer.training.diffusion import DiffusionTask
from steer.training.diffusion.negative import NegativeAware
from steer.training.diffusion.onpolicy import OnPolicy
from steer.training.diffusion.policy import PolicyGradient
from steer.training.diffusion.regression import RewardDifference
from steer.training.handle import own

PRIOR = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]))
SLOPE = torch.tensor([1.0, 0.5])
STEPS = 6


class Slope:
    """x . (1, 1/2), as a black box: it tilts each component's mean by variance times slope, and their weights."""

    needs_decode, differentiable = False, False

    def __call__(self, x: Tensor, prompts) -> Tensor:
        return (x @ SLOPE).detach()


class Tuned(nn.Module):
    """The exact denoiser plus a network that is zero at first."""

    def __init__(self, width: int = 32):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            hidden = (nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
            self.net = nn.Sequential(*hidden, nn.Linear(width, 2))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor, level, cond=None) -> Tensor:
        told = x.new_tensor([level.alpha, level.sigma]).expand(len(x), 2)
        return PRIOR(x, level) + self.net(torch.cat([x, told], 1))


def objective(kind: type[OnPolicy], **options) -> OnPolicy:
    net = Tuned()
    task = DiffusionTask(net, net, vp(STEPS), (2,), reward=Slope(), kind="v_prediction")
    return kind(own(net), task, prompts=1, **options)


def learnt(kind: type[OnPolicy], steps: int, lr: float, **options) -> Tensor:
    """Rewards of 4000 new runs after so many updates."""
    loss = objective(kind, **options)
    fit(loss.handle, loss, torch.optim.AdamW(loss.handle.parameters.values(), lr=lr), Run(steps=steps))
    loss.each = 4000
    return loss.draw(generator(9)).rewards


@pytest.fixture(scope="module")
def base() -> Tensor:
    """Rewards of the model before training."""
    return objective(PolicyGradient, each=20_000).draw(generator(5)).rewards


@pytest.fixture(scope="module")
def tilted(base) -> float:
    """The mean reward of what the untrained sampler makes, tilted by exp(r)."""
    return float(torch.softmax(base, 0) @ base)


def test_the_tilt_is_a_strong_one(base, tilted):
    assert base.mean().abs() < 0.2
    assert tilted > base.mean() + 0.8 * base.std()


def test_reward_differences_go_to_the_tilted_posterior(base, tilted):
    options = {"each": 64, "updates": 4, "beta": 1.0, "clip": 1.0, "over": "sum", "reduce": "sum"}
    found = learnt(RewardDifference, 120, 1e-2, **options).mean()
    assert base.mean() + 0.5 * (tilted - base.mean()) < found < tilted + 0.1


def test_the_policy_gradient_with_a_penalty_raises_the_reward(base, tilted):
    """A z-scored advantage and a penalty of 1 are a tilt by r / std: about the same."""
    options = {"each": 128, "updates": 2, "clip": 0.1, "kl_weight": 1.0, "kl": "step", "reduce": "sum"}
    found = learnt(PolicyGradient, 40, 3e-3, **options).mean()
    assert base.mean() + 0.3 * (tilted - base.mean()) < found < tilted + 0.2


@pytest.mark.parametrize("normalised", [True, False])
def test_negative_aware_tuning_raises_the_reward(base, normalised):
    found = learnt(NegativeAware, 24, 3e-3, each=128, updates=2, levels=4, normalised=normalised)
    assert found.mean() > base.mean() + 0.5 * base.std()


def test_nothing_is_learnt_from_a_reward_that_is_the_same_for_all(base):
    loss = objective(NegativeAware, each=16, kl_weight=0.0)
    loss.task.reward = type("Flat", (Slope,), {"__call__": lambda self, x, prompts: torch.ones(len(x))})()
    value, noted = loss(generator(), 0)
    value.backward()
    assert noted["idle"] == 1.0
    assert all(parameter.grad.abs().max() < 1e-6 for parameter in loss.handle.parameters.values())
