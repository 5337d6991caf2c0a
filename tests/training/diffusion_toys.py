"""Small chains in float64, and random pipelines of three prediction types, as tasks for training."""

from __future__ import annotations

import diffusers
import tiny
import tiny_families
import torch
from torch import Tensor, nn

from steer.diffusion.schedule import vp
from steer.diffusion.state import Level
from steer.rewards import FromCallable
from steer.training.diffusion import DiffusionTask, Pairs
from steer.training.handle import Handle, own

PROMPTS = ("a cat", "a dog", "an owl", "a fox")


class Net(nn.Module):
    """x0 from (x, alpha, sigma) by one hidden layer."""

    def __init__(self, width: int = 8, d: int = 2):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(d + 2, width), nn.Tanh(), nn.Linear(width, d)).double()

    def forward(self, x: Tensor, level: Level, cond: object = None) -> Tensor:
        told = x.new_tensor([level.alpha, level.sigma]).expand(len(x), 2)
        return self.layers(torch.cat([x, told], 1))


class Quadratic:
    """-|x - 1|^2, with a gradient."""

    needs_decode, differentiable = False, True

    def __call__(self, x: Tensor, prompts) -> Tensor:
        return -(x - 1).square().sum(1)


def chain(steps: int = 3, **options) -> tuple[DiffusionTask, Handle]:
    """A task of a network with two numbers to make, all of its weights under training."""
    net = Net()
    given = {"reward": Quadratic(), "levels": vp(20)[:-1], "prompts": ("", " "), **options}
    return DiffusionTask(net, net, vp(steps), (2,), **given), own(net)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bright(pictures: Tensor) -> Tensor:
    return pictures.mean((1, 2, 3))


def pipeline_of(kind: str):
    """A random pipeline that predicts noise, v or a velocity, decoded pictures inside (0, 1)."""
    if kind == "flow_prediction":
        return tiny_families.made(
            lambda s: tiny_families.sd3(s, num_layers=2), diffusers.FlowMatchEulerDiscreteScheduler()
        )
    scheduler = diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing="trailing")
    return tiny.pipeline(scheduler)


OPTIONS = {"flow_prediction": {"max_sequence_length": 8, "height": 16, "width": 16}}


def pipeline_task(
    kind: str = "epsilon", guidance: float = 2.0, reward=None, pairs: bool = True, steps: int = 4
) -> DiffusionTask:
    """A task on it, with a differentiable reward and random pictures."""
    pipe = pipeline_of(kind)
    reward = FromCallable(bright, prompts=False, differentiable=True) if reward is None else reward
    options = {"num_inference_steps": steps, "guidance_scale": guidance, **OPTIONS.get(kind, {})}
    task = DiffusionTask.of(pipe, PROMPTS, reward, **options)
    if pairs:
        latents = torch.randn(len(PROMPTS), *task.shape, generator=generator())
        task.real, task.content = Pairs(latents, PROMPTS), Pairs(-latents, PROMPTS)
    return task
