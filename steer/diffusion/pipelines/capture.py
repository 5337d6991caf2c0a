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
from steer.diffusion.pipelines.embeddings import encode, prompts_of
from steer.diffusion.pipelines.families import family_of
from steer.diffusion.pipelines.family import Given, pictures, running
from steer.diffusion.pipelines.levels import input_scale, level_at, schedule
from steer.diffusion.pipelines.network import Call, blocks_of, named
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

    def branches(self, cond: dict[str, Tensor]) -> int:
        """Rows that a call costs for each row of x: the branches of guidance in `cond`."""
        return blocks_of(cond, self.denoise.call.blocks)


class _Stop(BaseException):
    """Leaves a pipeline in its first step; no Exception, so that nothing in between can catch it."""

    def __init__(self, given: Given, calls: list[dict[str, Any]]):
        self.given, self.calls = given, calls


def denoiser_of(pipe: Any, prompt: str | list[str] | None = None, **kwargs: Any) -> PipelineDenoiser:
    """The denoiser that a pipeline uses for a prompt, taken from the network call of its first step, which is not made.

    kwargs go to the pipeline (guidance_scale, negative_prompt, num_inference_steps, height, prompt_embeds, ...). A
    generator among them is copied, not consumed. Run it with

        sample(d, d.shape, d.schedule, controllers, cond=d.cond, prompts=d.prompts, decode=d.decode)

    Raises ValueError for an unsupported pipeline or scheduler, a pipeline that starts from a reference, and an empty
    list of prompts.
    """
    family = family_of(pipe)
    if family.reference is not None:
        raise ValueError(
            f"{type(pipe).__name__} starts from a reference, part of the way down its schedule: steer it by `attach` "
            "or `Steered`, or take the denoiser of the text-to-image pipeline, "
            "diffusers.AutoPipelineForText2Image.from_pipe(pipe)."
        )
    kind_of(pipe.scheduler)
    prompts = prompts_of({"prompt": prompt, **kwargs})
    given, calls = _first_step(pipe, len(prompts), {"prompt": prompt, **kwargs})
    images = given["num_images_per_prompt"]
    *free, call = [Call(one, family.input, len(prompts) * images, family.rowless) for one in reversed(calls)]
    call = call.with_free(free[0]) if free else call
    level = level_at(pipe.scheduler, pipe.scheduler.timesteps[0])
    return PipelineDenoiser(
        NetworkDenoiser(getattr(pipe, family.network), call, pipe, family, family.guidance(pipe, given)),
        call.cond,
        schedule(pipe.scheduler),
        call.x * input_scale(pipe.scheduler, level),
        tuple(one for one in prompts for _ in range(images)),
        partial(pictures, pipe, family, pipe.vae.decode, given),
    )


def _first_step(pipe: Any, prompts: int, kwargs: dict[str, Any]) -> tuple[Given, list[dict[str, Any]]]:
    """What the pipeline is given, and its network calls of the first step: one, or one a branch of guidance."""
    family = family_of(pipe)
    network, calls = getattr(pipe, family.network), []

    def stop(original: Callable[..., Any], *args: Any, **named_args: Any) -> tuple[Tensor]:
        calls.append(named(network, args, named_args))
        given = running(pipe)
        if len(calls) == family.calls(pipe, given):
            raise _Stop(given, calls)
        return (torch.zeros_like(calls[0][family.input]),)

    own = kwargs.get("generator") or torch.default_generator
    copy = [one.clone_state() for one in own] if isinstance(own, list) else own.clone_state()
    try:
        with (
            replaced(pipe, "encode_prompt", lambda original, *a, **k: encode(original, prompts, a, k)),
            replaced(network, "forward", stop),
        ):
            pipe(**{**kwargs, "generator": copy})
    except _Stop as stopped:
        return stopped.given, stopped.calls
    finally:
        pipe.maybe_free_model_hooks()  # the pipeline did not get there
    raise RuntimeError(f"{type(pipe).__name__} returned without calling its network.")
