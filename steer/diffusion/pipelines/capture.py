"""Driver 2's way into a pipeline: its network and its conditioning, for our own loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.pipelines.attach import replaced
from steer.diffusion.pipelines.denoiser import NetworkDenoiser
from steer.diffusion.pipelines.families import family_of
from steer.diffusion.pipelines.family import guidance, pictures
from steer.diffusion.pipelines.levels import input_scale, level_at, schedule
from steer.diffusion.pipelines.network import Call, named
from steer.diffusion.pipelines.schedulers import kind_of
from steer.diffusion.state import Level


@dataclass(frozen=True)
class PipelineDenoiser:
    """A pipeline's network under classifier-free guidance: (x (b, *shape), level, cond) -> x0 (b, *shape).

    cond      {argument of the network: (prompts, branches, ...)}, for `sample`, which repeats it for the particles
    schedule  the scheduler's levels, from noise to clean
    x         (prompts, *shape) the noise that the pipeline would have started from
    shape     of one particle
    prompts   as they were given
    decode    clean latents (b, *shape) -> pictures (b, 3, h, w), float in [0, 1]

    Gradients flow through it.
    """

    denoise: NetworkDenoiser = field(repr=False)
    cond: dict[str, Tensor] = field(repr=False)
    schedule: list[Level] = field(repr=False)
    x: Tensor = field(repr=False)
    prompts: tuple[str, ...]
    decode: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def __call__(self, x: Tensor, level: Level, cond: dict[str, Tensor]) -> Tensor:
        return self.denoise(x, level, cond)


class _Stop(BaseException):
    """Leaves a pipeline at its first network call; no Exception, so that nothing in between can catch it."""

    def __init__(self, kwargs: dict[str, Any]):
        self.kwargs = kwargs


def denoiser_of(pipe: Any, prompt: str | list[str], **kwargs: Any) -> PipelineDenoiser:
    """The denoiser that a pipeline uses for a prompt, taken from its own first network call, which is not made.

    kwargs go to the pipeline (guidance_scale, negative_prompt, num_inference_steps, height, ...). A generator among
    them is copied, not consumed. Run it with

        sample(d, d.shape, d.schedule, controllers, cond=d.cond, prompts=d.prompts, decode=d.decode)

    Raises ValueError for an unsupported pipeline or scheduler, a pipeline that starts from a reference, and an empty
    list of prompts.
    """
    family = family_of(pipe)
    if family.reference is not None:
        raise ValueError(
            f"{type(pipe).__name__} starts from a reference, part of the way down its schedule: steer it by `attach` "
            "or `Steered`, or take the denoiser of the text-to-image pipeline, StableDiffusionPipeline.from_pipe(pipe)."
        )
    kind_of(pipe.scheduler)
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if not prompts:
        raise ValueError(f"prompt = {prompt!r}: expected a string or a non-empty list of strings.")
    call = _first_call(pipe, prompt, kwargs)
    network, images = getattr(pipe, family.network), kwargs.get("num_images_per_prompt", 1)
    call = Call(call, family.input, len(prompts) * images)
    level = level_at(pipe.scheduler, pipe.scheduler.timesteps[0])
    return PipelineDenoiser(
        NetworkDenoiser(network, call, pipe.scheduler, guidance(pipe)),
        call.cond,
        schedule(pipe.scheduler),
        call.kwargs[family.input][: call.slots] * input_scale(pipe.scheduler, level),
        tuple(one for one in prompts for _ in range(images)),
        partial(pictures, pipe, pipe.vae.decode),
    )


def _first_call(pipe: Any, prompt: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    network = getattr(pipe, family_of(pipe).network)

    def stop(original: Callable[..., Any], *args: Any, **given: Any) -> None:
        raise _Stop(named(network, args, given))

    own = kwargs.get("generator") or torch.default_generator
    copy = [one.clone_state() for one in own] if isinstance(own, list) else own.clone_state()
    try:
        with replaced(network, "forward", stop):
            pipe(prompt, **{**kwargs, "generator": copy})
    except _Stop as stopped:
        return stopped.kwargs
    finally:
        pipe.maybe_free_model_hooks()  # the pipeline did not get there
    raise RuntimeError(f"{type(pipe).__name__} returned without calling its network.")
