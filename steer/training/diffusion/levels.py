"""Noise levels to train at, and what a difference between two x0 is worth in a network's own prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator

from steer.diffusion.pipelines.schedulers import kind_of
from steer.diffusion.state import Level

if TYPE_CHECKING:
    from steer.training.diffusion.task import DiffusionTask

Choose = Callable[["DiffusionTask", Generator], Level]
"""(task, generator) -> the level that a batch is noised to."""


def training_levels(scheduler: Any) -> list[Level]:
    """All levels that a scheduler's model knows, from noise to clean, `num_train_timesteps` of them.

    Variance preserving (alpha_t, sigma_t), variance exploding (1, sigma_t / alpha_t), flow (1 - t / T, t / T).
    """
    count, scaling = scheduler.config.num_train_timesteps, kind_of(scheduler).scaling
    if scaling == "flow":
        sigmas = [t / count for t in range(count, 0, -1)]
        return [Level(1 - sigma, sigma, count * sigma, k / count) for k, sigma in enumerate(sigmas)]
    squares = scheduler.alphas_cumprod.double().flip(0).tolist()
    pairs = [(math.sqrt(square), math.sqrt(1 - square)) for square in squares]
    if scaling == "ve":
        pairs = [(1.0, sigma / alpha) for alpha, sigma in pairs]
    return [Level(*pair, count - 1 - k, k / count) for k, pair in enumerate(pairs)]


def prediction_weight(level: Level, kind: str) -> float:
    """k^2 with |prediction - prediction'|^2 = k^2 |x0 - x0'|^2 for two predictions at one x.

    epsilon: alpha / sigma, v_prediction: sqrt(alpha^2 + sigma^2) / sigma, flow_prediction: (alpha + sigma) / sigma,
    sample: 1, each squared. So every squared error of this module is one of the model's own target.
    """
    alpha, sigma = level.alpha, level.sigma
    known = {
        "epsilon": alpha / sigma,
        "v_prediction": math.hypot(alpha, sigma) / sigma,
        "flow_prediction": (alpha + sigma) / sigma,
        "sample": 1.0,
    }
    if kind not in known:
        raise ValueError(f"prediction type {kind!r}: expected one of {tuple(known)}.")
    return known[kind] ** 2


def between(start: float = 0.0, stop: float = 1.0) -> Choose:
    """Any level that the model was trained at with start <= progress < stop; 0 is noise, 1 is clean."""

    def choose(task: DiffusionTask, generator: Generator) -> Level:
        inside = [level for level in task.levels if start <= level.progress < stop]
        if not inside:
            raise ValueError(f"no noise level has {start} <= progress < {stop}; widen the window.")
        return inside[int(torch.randint(len(inside), (), generator=generator))]

    return choose


ANYWHERE = between()


def at_step(fraction: float) -> Choose:
    """The level of the sampler's step at this fraction of its run."""
    return lambda task, generator: task.schedule[step_at(fraction, task.steps)]


def step_at(fraction: float, steps: int) -> int:
    """floor(fraction steps), and a step that there is. Raises ValueError for a fraction outside [0, 1]."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"a step at {fraction} of the run: expected a fraction in [0, 1].")
    return min(int(fraction * steps), steps - 1)
