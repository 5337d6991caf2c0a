"""What steer reads from a scheduler, against what the scheduler itself computes."""

from itertools import pairwise

import diffusers
import pytest
import torch
from solver_cases import CASES, Case, close, scheduler
from tiny import Watch

from steer.diffusion.pipelines.levels import level_at, predicted_x0, prediction_for, schedule
from steer.diffusion.pipelines.transition import stochastic_step
from steer.diffusion.state import Level

KNOW_X0 = (
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
LIMITS = {
    "clip": ("DDIMScheduler", {"clip_sample": True, "clip_sample_range": 0.7}),
    "threshold": ("DDPMScheduler", {"thresholding": True, "clip_sample": False}),
    "threshold-dpm": ("DPMSolverMultistepScheduler", {"thresholding": True}),
}


def own_estimates(pipe):
    """The scheduler's own x0 of every step to come, as it comes."""
    found, step = [], pipe.scheduler.step

    def noted(model_output, timestep, sample, **kwargs):
        first = getattr(pipe.scheduler, "state_in_first_order", True)
        out = step(model_output, timestep, sample, **kwargs)
        if first:
            found.append(out[1] if len(out) > 1 else pipe.scheduler.model_outputs[-1])
        return out

    pipe.scheduler.step = noted
    return found


def check_x0(make, steps=6):
    case, watch = Case(make, steps=steps), Watch()
    pipe = case.pipe()
    pipe.scheduler = make()  # a pipeline switches clip_sample off in the scheduler that it is made with
    own = own_estimates(pipe)
    case.attached([watch], n=1, pipe=pipe)
    assert len(own) == steps
    assert all(torch.equal(state.x0, x0) for state, x0 in zip(watch.states, own))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", KNOW_X0)
def test_x0_is_the_schedulers_own(name, prediction):
    if name == "EulerAncestralDiscreteScheduler" and prediction == "sample":
        pytest.skip("diffusers has not implemented it")
    limits = {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    check_x0(scheduler(name, prediction_type=prediction, **limits))


@pytest.mark.parametrize("limit", LIMITS)
def test_x0_is_limited_as_the_scheduler_limits_it(limit):
    name, config = LIMITS[limit]
    check_x0(scheduler(name, **config))


def test_an_option_of_another_scheduler_is_ignored():
    """`from_config` keeps DDIM's clip_sample in a DPM++ scheduler, which does not clip."""
    ddim = scheduler("DDIMScheduler", clip_sample=True, clip_sample_range=0.1)()
    dpm = diffusers.DPMSolverMultistepScheduler.from_config(ddim.config)
    assert dpm.config.clip_sample
    check_x0(lambda: diffusers.DPMSolverMultistepScheduler.from_config(ddim.config))


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_zero_terminal_snr(name):
    limits = {"clip_sample": False} if name == "DDIMScheduler" else {}
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    check_x0(scheduler(name, **settings, **limits))


def test_epsilon_at_zero_terminal_snr_is_refused():
    make = scheduler("DDIMScheduler", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False)
    with pytest.raises(ValueError, match="alpha = 0"):
        Case(make).attached(n=1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_prediction_for_undoes_predicted_x0(name, prediction):
    limits = {"clip_sample": False} if name == "DDIMScheduler" else {}
    made = scheduler(name, prediction_type=prediction, **limits)()
    made.set_timesteps(6)
    x, x0 = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in made.timesteps:
        level = level_at(made, t)
        assert close(predicted_x0(made, prediction_for(made, x0, x, level), x, level), x0)


def flow():
    made = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    made.set_timesteps(6)
    return made


def test_flow_levels_and_x0():
    made = flow()
    levels = schedule(made)
    assert all(level.alpha == pytest.approx(1 - level.sigma) for level in levels)
    assert [level.sigma for level in levels] == made.sigmas.tolist()
    x0, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    level = levels[2]
    assert close(predicted_x0(made, eps - x0, level.alpha * x0 + level.sigma * eps, level), x0)


def test_flow_transition_keeps_the_marginal():
    """With the exact velocity of known x0, the noised step stays x' = alpha' x0 + sigma' (unit noise)."""
    made, g = flow(), torch.Generator().manual_seed(0)
    x0 = torch.full((1, 4, 96, 96), 0.5)
    x = torch.randn(x0.shape, generator=g)
    for t, level, to in zip(made.timesteps, schedule(made), schedule(made)[1:]):
        x = stochastic_step(made, 0.8, g, (x - x0) / level.sigma, t, x, return_dict=False)[0]
        assert x.mean() == pytest.approx(to.alpha * 0.5, abs=0.02)
        assert x.std() == pytest.approx(to.sigma, abs=0.02)
    assert torch.equal(x, x0)
    assert made.step_index == 6


def test_added_noise_at_eta_1_is_euler_ancestral():
    """Two ways to one law: Euler with the stochastic transition, and diffusers' own ancestral step."""
    ours, _ = CASES["euler-eta"].attached(n=2)
    own, _ = CASES["euler-a"].attached(n=2)
    assert close(ours, own, 1e-3)


def test_schedule_ends_clean():
    for name in ("ddpm", "euler", "dpm2m", "lcm"):
        made = CASES[name].make()
        made.set_timesteps(6)
        levels = schedule(made)
        assert len(levels) == 7
        assert levels[-1].progress == 1
        assert levels[-1][:2] == Level(1.0, 0.0)[:2]
        assert all(a.sigma / max(a.alpha, 1e-9) > b.sigma / b.alpha for a, b in pairwise(levels))
