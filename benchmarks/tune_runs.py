"""The runs of `benchmarks.tune`: a method trained up to a cost, and what its model then makes of other prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

import steer
from steer import measure, zoo
from steer.rewards import ClipScore, Compressibility, Judge, Reward
from steer.rewards.jpeg import SmoothCompressibility
from steer.training import Handle, Method, Run, fit
from steer.training.diffusion import DiffusionTask, Pairs
from steer.training.diffusion.denoising import noised, squared_error
from steer.training.diffusion.rollout import rollout
from steer.training.loop import Logged
from steer.zoo.data import STYLES, bucket, caption, captions, compose, glyphs, split

REWARDS: dict[str, tuple[Reward, Reward]] = {
    "compressibility": (SmoothCompressibility(75), Compressibility(75)),
    "alignment": (ClipScore(), ClipScore()),
}
"""Of each: what direct reward follows, and what all others follow and all are measured by."""
EVERY, PART = 4, 1  # one name in so many is held out; dials were found on those of part 0
DRIFT = 8  # pictures at each level, for the drift


@dataclass(frozen=True)
class Size:
    """What all runs share."""

    model: str
    steps: int
    guidance: float
    train: int
    prompts: int
    pictures: int
    seeds: int
    budget: int
    look: int


def names(held_out: bool) -> list[str]:
    """Names that no run trains on, or all others: fixed by a hash."""
    return [row["name"] for row in captions() if (bucket("tune", row["name"], n=EVERY) == PART) == held_out]


def prompts_of(size: Size, held_out: bool) -> list[str]:
    """As many as there are, spread over the names, without a style."""
    count, every = size.prompts if held_out else size.train, names(held_out)
    if not 2 <= count <= len(every):
        raise ValueError(f"{count} {'held-out' if held_out else 'training'} prompts: expected 2 to {len(every)}.")
    return [caption(every[k * (len(every) - 1) // (count - 1)]) for k in range(count)]


def task_of(size: Size, reward: Reward, real: Pairs | None = None) -> DiffusionTask:
    """A fresh pipeline with the training prompts, and pictures of their names: those given, or else read and encoded.

    The flow model's steps are spaced so that the last one begins at sigma = 1 / steps: by itself it would begin at
    0.001, where direct reward through the last step has nothing left to change.
    """
    pipe = steer.load(size.model)
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"num_inference_steps": size.steps, "guidance_scale": size.guidance}
    if size.model == "emoji-flow":
        options |= {"sigmas": [1 - k / size.steps for k in range(size.steps)]}
    options |= zoo.CALLS.get(size.model, {})
    pictures = shown(size.pictures) if real is None else None
    task = DiffusionTask.of(pipe, prompts_of(size, held_out=False), reward, real=pictures, **options)
    task.real, task.recompute = real or task.real, False  # these models are small
    return task


def shown(count: int) -> tuple[Tensor, list[str]]:
    """Pictures of the training names in the styles that the models were trained on, on white, with their captions."""
    wanted = set(names(held_out=False))
    every = [(s, n) for n, s in split().T.nonzero().tolist() if glyphs()[1][n] in wanted]
    places = [every[k * len(every) // count] for k in range(min(count, len(every)))]
    pictures = torch.stack([glyphs()[0][s, n] for s, n in places])
    return compose(pictures), [caption(glyphs()[1][n], STYLES[s]) for s, n in places]


def cost(log: Sequence[Logged]) -> int:
    """Network rows of a training run; a row that carries a gradient counts for three."""
    return round(sum(row["rows"] + 2 * row["backward_rows"] for row in log))


def trained(task: DiffusionTask, method: Method, size: Size, folder: Path) -> tuple[Handle, list[Logged]]:
    """Train until `cost` reaches the budget, looking every `look` updates; goes on from the folder's checkpoint."""
    (phase,) = method.phases
    handle = phase.parametrise(task)
    optimiser, loss, log, steps = phase.optim(handle, {}), phase.objective(handle, task), [], 0
    while cost(log) < size.budget:
        steps += size.look
        log = fit(handle, loss, optimiser, Run(steps=steps), folder, name=folder.name)
    return handle, log


@torch.no_grad()
def made(task: DiffusionTask, prompts: Sequence[str], seeds: int, guided: bool) -> Tensor:
    """Pictures (prompts, seeds, 3, h, w) by the deterministic sampler, from noise that only the prompt's place sets."""
    found = []
    for k, prompt in enumerate(prompts):
        x = task.schedule[0].sigma * task.noise(seeds, Generator().manual_seed(10_000 + k))
        cond = task.cond([prompt] * seeds, guided)
        found.append(task.decode(rollout(task, cond, x, task.steps, task.steps)))
    return torch.stack(found)


@torch.no_grad()
def drift(task: DiffusionTask, handle: Handle) -> float:
    """Mean squared difference of predictions to those before training, on noised real pictures at the run's levels."""
    generator, apart = Generator().manual_seed(1), []
    for level in task.schedule[1:-1]:
        index, clean = task.pairs().draw(DRIFT, generator)
        x = noised(task, clean, level, generator)
        texts = [task.pairs().captions[k] for k in index.tolist()]
        with handle.using(handle.start):  # the text encoder may be what was trained
            before = task.x0(x, level, task.cond(texts, guided=False))
        apart.append(squared_error(task, task.x0(x, level, task.cond(texts, guided=False)), before, level))
    return float(torch.cat(apart).mean())


def measured(task: DiffusionTask, size: Size, reward: Reward, guided: bool) -> dict[str, Any]:
    """Reward, judge and diversity of every held-out prompt."""
    prompts = prompts_of(size, True)
    pictures = made(task, prompts, size.seeds, guided)
    repeated = [prompt for prompt in prompts for _ in range(size.seeds)]

    def scored(by: Reward) -> list[float]:
        return by(pictures.flatten(0, 1), repeated).reshape(len(prompts), -1).mean(1).tolist()

    diversity = measure.diversity(pictures).tolist() if size.seeds > 1 else None
    return {"reward": scored(reward), "judge": scored(Judge()), "diversity": diversity}
