"""What `benchmarks.weights` measures of a model: losses of pictures, changes of its weights, and its own pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.weights_world import CONCEPT, STYLES, TOGETHER, World, caption, glyphs, squares
from steer import measure
from steer.diffusion.state import Level
from steer.training.diffusion import DiffusionTask, Pairs
from steer.training.diffusion.denoising import noised, squared_error
from steer.training.diffusion.rollout import rollout
from steer.training.handle import Handle
from steer.training.weights.difference import Difference
from steer.training.weights.merging import Merging
from steer.training.weights.report import update_rank
from steer.training.weights.task import targeted

PROGRESS = (0.2, 0.5, 0.8)  # of the noise levels that losses are measured at; 0 is noise
AMONG, TOP = 16, 5  # captions that one is told from; ranks that count as recognised


def level_at(task: DiffusionTask, progress: float) -> Level:
    """A level that the model was trained at."""
    return task.levels[int(progress * len(task.levels))]


@torch.no_grad()
def errors(task: DiffusionTask, pairs: Pairs) -> Tensor:
    """(m,) denoising loss of each picture, a mean over `PROGRESS`, with noise that its place and the level set."""
    cond, total = task.cond(pairs.captions, guided=False), torch.zeros(len(pairs.captions))
    for k, progress in enumerate(PROGRESS):
        level = level_at(task, progress)
        x = noised(task, pairs.latents, level, Generator().manual_seed(k))
        rows = [slice(at, at + TOGETHER) for at in range(0, len(x), TOGETHER)]
        x0 = torch.cat([task.x0(x[row], level, {name: leaf[row] for name, leaf in cond.items()}) for row in rows])
        total += squared_error(task, x0, pairs.latents, level) / len(PROGRESS)
    return total


def at_start(world: World, handle: Handle) -> list[float]:
    """Losses of the test pictures where the method began, before its first step."""
    with handle.using(handle.start):
        model = handle.run(handle.parameters["w"]) if isinstance(handle, Merging) else handle.model
        return errors(world.task.by(model), world.test).tolist()


def changes(world: World, targets: Sequence[str]) -> dict[str, Any]:
    """What became of the weights.

    changed     entries that are others than before
    ranks       of each target matrix, how many directions hold 90 % of the change
    directions  the same, those above 1e-4 of the first
    moved       |change| / |W|
    gram        |W W^T - W0 W0^T| / |W0 W0^T|: 0 where angles between neurons are kept
    """
    after, base = dict(world.task.model.named_parameters()), world.base
    found: dict[str, Any] = {"changed": Difference.between(base, after).count}
    found |= {name: [] for name in ("ranks", "directions", "moved", "gram")}
    for name in (f"{layer}.weight" for layer in targeted(world.task.model, targets)):
        before, now = base[name].double(), after[name].detach().double()
        change, gram = now - before, before @ before.T
        found["ranks"].append(update_rank(change))
        found["directions"].append(int(torch.linalg.matrix_rank(change, rtol=1e-4)))
        found["moved"].append(float(change.norm() / before.norm()))
        found["gram"].append(float((now @ now.T - gram).norm() / gram.norm()))
    return found


@torch.no_grad()
def painted(task: DiffusionTask, prompts: Sequence[str]) -> Tensor:
    """Pictures by the deterministic sampler, with guidance, from noise that only a prompt's place sets."""
    found = []
    for at in range(0, len(prompts), TOGETHER):
        some = prompts[at : at + TOGETHER]
        noise = torch.cat([task.noise(1, Generator().manual_seed(10_000 + at + k)) for k in range(len(some))])
        x = task.schedule[0].sigma * noise
        found.append(task.decode(rollout(task, task.cond(some), x, task.steps, task.steps)))
    return torch.cat(found)


def recognised(pictures: Tensor, of: Sequence[str]) -> list[float]:
    """NAME-R@5 by the judge, of each picture."""
    return (measure.name_rank(pictures, of, glyphs()[1]) < TOP).float().tolist()


def named(world: World) -> dict[str, list[float]]:
    """Of pictures of the test names, without a style."""
    return {"named": recognised(painted(world.task, [caption(name) for name in world.names]), world.names)}


def styled(world: World) -> dict[str, list[float]]:
    """The same in the new style, and the share of each picture's variance that lies between its squares."""
    pictures = painted(world.task, world.test.captions)
    flat = squares(pictures).flatten(1).var(1) / pictures.flatten(1).var(1).clamp_min(1e-12)
    return {"styled": recognised(pictures, world.names), "flat": flat.tolist()}


def concept(world: World) -> dict[str, list[float]]:
    """Of pictures of all names of the concept, in all styles."""
    of = [(name, style) for name in glyphs()[1] if CONCEPT in name.split() for style in STYLES]
    pictures = painted(world.task, [caption(*each) for each in of])
    return {"concept": recognised(pictures, [name for name, _ in of])}


@torch.no_grad()
def retrieved(world: World) -> dict[str, list[float]]:
    """Whether a test picture's loss at two levels is least under its own caption, among `AMONG` and with one noise."""
    task, (latents, captions) = world.task, (world.test.latents, world.test.captions)
    many, found = min(AMONG, len(captions)), []
    for k, wanted in enumerate(latents):
        cond = task.cond([captions[(k + j) % len(captions)] for j in range(many)], guided=False)
        total = torch.zeros(many)
        for level in (level_at(task, progress) for progress in PROGRESS[:2]):
            x = noised(task, wanted[None], level, Generator().manual_seed(k)).expand(many, *wanted.shape)
            total += squared_error(task, task.x0(x, level, cond), wanted[None], level)
        found.append(float(total.argmin() == 0))
    return {"retrieved": found}


@torch.no_grad()
def rewards(world: World) -> dict[str, list[float]]:
    """Of the test pictures."""
    return {"rewards": world.task.score(world.test.latents, world.test.captions).tolist()}


MEASURES: dict[str, Callable[[World], dict[str, list[float]]]] = {
    one.__name__: one for one in (named, styled, concept, retrieved, rewards)
}


def measured(world: World, measures: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    """All of the model as it is now: losses of new, known and validating pictures, its changes, and `measures`."""
    sets = {"new": world.test, "known": world.known, "valid": world.valid}
    found: dict[str, Any] = {name: errors(world.task, pairs).tolist() for name, pairs in sets.items()}
    for name in measures:
        found |= MEASURES[name](world)
    return {**found, **changes(world, targets)}
