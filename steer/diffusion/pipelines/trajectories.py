"""Trajectories of a pipeline: a plain run recorded, and pictures inverted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from steer.diffusion.control import Controller
from steer.diffusion.pipelines.attach import attach
from steer.diffusion.pipelines.capture import PipelineDenoiser, denoiser_of
from steer.diffusion.pipelines.families import family_of
from steer.diffusion.pipelines.family import encoded
from steer.diffusion.pipelines.levels import prediction_type
from steer.diffusion.solve import transition
from steer.diffusion.state import Level, State
from steer.diffusion.trajectory import Trajectory, upwards


def record(pipe: Any, prompt: str | list[str], **kwargs: Any) -> Trajectory:
    """A plain run of the pipeline, kept. kwargs go to the pipeline (generator, num_inference_steps, ...)."""
    recorder = _Recorder()
    with attach(pipe, recorder) as session:
        pipe(prompt, **{**kwargs, "output_type": "latent"})
    x, levels = zip(*recorder.kept, strict=True)
    return Trajectory(torch.stack(x), levels, session.network.call.cond, session.state.run.prompts, session.ledger.rows)


@dataclass(frozen=True)
class _Recorder(Controller):
    """Keeps x and its level at every look."""

    kept: list[tuple[Tensor, Level]] = field(default_factory=list, repr=False, compare=False)

    def look(self, state: State) -> State:
        self.kept.append((state.x.clone(), state.level))
        return state


@torch.no_grad()
def invert(
    pipe: Any,
    images: Any,
    prompt: str | list[str] = "",
    num_inference_steps: int = 50,
    repeats: int = 0,
    **kwargs: Any,
) -> Trajectory:
    """The noise that a deterministic run would have made these pictures from, and all that lies between.

    images   PIL pictures or tensors (r, 3, h, w) in [0, 1], of the size that the pipeline makes
    prompt   one for all pictures, or one each; without guidance (guidance_scale = 1), unless kwargs say otherwise
    repeats  0: DDIM inversion (arXiv 2010.02502; for flow matching the ODE backwards): x' = alpha' x0 + sigma' eps with
             x0 and eps predicted at the cleaner level. k > 0: they are predicted at x' itself, found by k fixed-point
             iterations (arXiv 2403.14602), which makes the way back exact where they converge

    (1 + repeats) rows a picture and step. Raises ValueError for repeats < 0, and as `denoiser_of` does.
    """
    if repeats < 0:
        raise ValueError(f"repeats = {repeats}: expected 0 (plain DDIM inversion) or more.")
    family = family_of(pipe)
    x = encoded(pipe, family, images)
    prompts = [prompt] * len(x) if isinstance(prompt, str) else list(prompt)
    denoiser = _denoiser(pipe, prompts, num_inference_steps, kwargs)
    if denoiser.x.shape != x.shape:
        raise ValueError(
            f"pictures that become latents {tuple(x.shape)}, where the pipeline makes {tuple(denoiser.x.shape)} for "
            f"{len(prompts)} prompts; give one picture a prompt, and the height and width of the pictures."
        )
    kept = upwards(denoiser, x, denoiser.schedule, denoiser.cond, repeats, prediction_type(pipe.scheduler) == "epsilon")
    levels = tuple(denoiser.schedule)
    every = torch.stack([*tqdm(kept, desc="inversion", total=len(levels), leave=False)])
    rows = len(x) * (1 + repeats) * denoiser.branches(denoiser.cond) * (len(levels) - 1)
    return Trajectory(every.flip(0), levels, denoiser.cond, tuple(prompts), rows)


@torch.no_grad()
def reconstruct(pipe: Any, trajectory: Trajectory, **kwargs: Any) -> Tensor:
    """(r, 3, h, w) in [0, 1]: where the deterministic run from a trajectory's noise leads; steps x r rows.

    How near it comes to the inverted pictures is the error of the inversion.
    """
    denoiser = _denoiser(pipe, list(trajectory.prompts), len(trajectory.levels) - 1, kwargs)
    x = trajectory.noise
    for level, to in zip(denoiser.schedule, denoiser.schedule[1:]):
        x = transition(x, denoiser(x, level, denoiser.cond), level, to, 0.0, None)
    return denoiser.decode(x)


def _denoiser(pipe: Any, prompts: list[str], steps: int, kwargs: dict[str, Any]) -> PipelineDenoiser:
    return denoiser_of(pipe, prompts, **{"guidance_scale": 1.0, "num_inference_steps": steps, **kwargs})
