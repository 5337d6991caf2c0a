"""What stands in for a pipeline's own methods while it is attached."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.control import Chain
from steer.diffusion.ledger import Ledger
from steer.diffusion.noise import DrawPerParticle, ParticleNoise
from steer.diffusion.pipelines import history
from steer.diffusion.pipelines.decoder import Decoder
from steer.diffusion.pipelines.families import family_of
from steer.diffusion.pipelines.family import pictures
from steer.diffusion.pipelines.levels import level_at, predicted_x0, prediction_for
from steer.diffusion.pipelines.results import Candidates, final_scores, lineage, trace_rows
from steer.diffusion.pipelines.schedulers import check_noise, kind_of, looks
from steer.diffusion.pipelines.station import NetworkStation
from steer.diffusion.pipelines.transition import stochastic_step
from steer.diffusion.state import Level, Run, State

Method = Callable[..., Any]


class Session:
    """One pipeline under controllers, and the results of its latest call. Made by `attach`.

    state    the State after the latest step; before the first call there is none
    entered  the State as it entered the final look: all particles, before the last choice; None if not finished
    """

    state: State | None = None
    entered: State | None = None

    def __init__(self, pipe: Any, control: Chain, n: int, eta: float | None, exact: bool):
        self.pipe, self.control, self.n, self.eta, self.exact = pipe, control, n, eta, exact
        self.family, self.scheduler = family_of(pipe), pipe.scheduler
        self.network, self.decoder = NetworkStation(pipe, exact), Decoder(pipe.vae.decode)
        self.prompts: list[str] = [""]
        self.skipped = 0

    # results

    @property
    def ledger(self) -> Ledger:
        """Exact cost of the latest call."""
        return self.state.run.ledger

    @property
    def lineage(self) -> Tensor:
        """(images, looks + 1, n) ancestors, see `SteeredOutput`."""
        return lineage(self.state)

    @property
    def trace(self) -> list[dict[str, Any]]:
        """One row a look and particle, see `SteeredOutput`."""
        return trace_rows(self.state.trace, self.state.run.prompts)

    @property
    def candidates(self) -> Candidates:
        """All particles as they entered the final look."""
        state = self.entered or self.state
        return Candidates(state.grouped(state.x), final_scores(self.state), self.decode)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (b, ...) -> pictures (b, 3, h, w), float in [0, 1]; counted."""
        return pictures(self.pipe, self.decoder, latents)

    # stand-ins, in the order in which a pipeline calls them

    def check_inputs(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        """For the pipeline's check, its first act: notes the prompts."""
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        prompt, embeds = given.get("prompt"), given.get("prompt_embeds")
        if prompt is None:
            prompt = [""] * (1 if embeds is None else len(embeds))
        self.prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not self.prompts:
            raise ValueError(f"prompt = {prompt!r}: expected a string or a non-empty list of strings.")
        return original(*args, **kwargs)

    def get_timesteps(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        """For a pipeline that runs only the end of its schedule: notes how many calls of `step` it leaves out."""
        timesteps, steps = original(*args, **kwargs)
        if len(timesteps) == 0:
            given = inspect.signature(original).bind(*args, **kwargs).arguments
            raise ValueError(
                f"strength = {given['strength']} of num_inference_steps = {given['num_inference_steps']} leaves no "
                "step to run; expected strength * num_inference_steps >= 1."
            )
        self.skipped = len(self.scheduler.timesteps) - len(timesteps)
        return timesteps, steps

    def prepare_latents(self, original: Method, *args: Any, **kwargs: Any) -> Tensor:
        """For the initial noise: a call begins, and every particle gets its own noise or shares the latents given."""
        call = inspect.signature(original).bind(*args, **kwargs)
        shape = self.family.noise_shape(self.pipe, call.arguments)
        images = self._images(shape[0])
        self.generator, latents = call.arguments.get("generator"), call.arguments.get("latents")
        self.shared = latents is not None and self.n > 1 and len(latents) == images
        if self.shared:
            call.arguments["latents"] = latents.repeat_interleave(self.n, 0)
        noise = ParticleNoise(self.n, self.generator[0] if isinstance(self.generator, list) else self.generator)
        if self.family.reference is not None:
            call.arguments["image"] = self.family.reference(self.pipe, call.arguments, self.n)
        with DrawPerParticle(noise, shape):
            x = original(*call.args, **call.kwargs)
        self._begin(x, noise, images)
        return self.state.x

    def forward(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        """For the network's `forward`."""
        return original(*args, **kwargs) if self.state is None else self.network(self.state, args, kwargs)

    def step(self, original: Method, prediction: Tensor, t: Tensor, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """For the scheduler's `step`: look, gather, then move with fresh noise for every particle."""
        if self.eta is not None and kind_of(self.scheduler).eta == "own":
            kwargs["eta"] = self.eta
        if self.calls == 0 and self.n > 1 and (self.control.needs_noise or self.shared):
            check_noise(self.scheduler, kwargs.get("eta", self.eta))
        state = replace(self.state, x=sample)
        if self.calls in self.looks:
            state, prediction = self._look(state, prediction, t)
        self.calls += 1
        noise, drawn = state.run.noise, state.run.noise.drawn
        with DrawPerParticle(noise, prediction.shape):
            out = self._move(original, prediction, t, state.x, *args, **kwargs)
        x = out[0] if torch.isfinite(state.logw).all() else out[0][state.alias.to(sample.device)]
        fresh = noise.drawn > drawn or isinstance(self.generator, list)
        state = replace(state, x=x, label=state.alias if fresh else state.label)
        self.state = self._finish(state) if self.calls + self.skipped == len(self.scheduler.timesteps) else state
        self.ledger.seconds = time.perf_counter() - self.began
        return _with_sample(out, self.state.x)

    def _images(self, rows: int) -> int:
        if rows % (len(self.prompts) * self.n):
            raise ValueError(
                f"the pipeline was called for {rows} rows, which is no multiple of {len(self.prompts)} prompts x "
                f"{self.n} particles; pass num_images_per_prompt={self.n} (times the images wanted of each prompt)."
            )
        return rows // self.n

    def _begin(self, x: Tensor, noise: ParticleNoise, images: int) -> None:
        self.began, self.calls, self.entered = time.perf_counter(), 0, None
        self.looks = looks(self.scheduler, self.skipped)
        prompts = tuple(prompt for prompt in self.prompts for _ in range(images // len(self.prompts)))
        run = Run(prompts, self.n, len(self.looks), noise, self.decode)
        self.decoder.begin(run.ledger, images if self.exact else None)
        state = State.begin(x, level_at(self.scheduler, self.scheduler.timesteps[self.skipped]), run)
        if self.shared:
            state = replace(state, label=state.label // self.n * self.n)
        self.state = self.control.start(state)
        self.network.begin(run, self.control)

    def _look(self, state: State, prediction: Tensor, t: Tensor) -> tuple[State, Tensor]:
        i = self.looks.index(self.calls)
        level = level_at(self.scheduler, t, i / state.steps)
        x0 = predicted_x0(self.scheduler, prediction, state.x, level)
        rows = {**history.read(self.scheduler, x0.shape), "prediction": prediction, "x0": x0}
        state = self.control.look(replace(state, i=i, level=level, x0=x0, history=rows))
        rows = dict(state.history)
        prediction, x0 = rows.pop("prediction"), rows.pop("x0")
        history.write(self.scheduler, rows)
        if state.x0 is not x0 and not torch.equal(state.x0, x0):  # a controller edited x0: tell the solver
            prediction = prediction_for(self.scheduler, state.x0, state.x, level)
        return replace(state, history={}), prediction

    def _move(self, original: Method, prediction: Tensor, t: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.eta or kind_of(self.scheduler).eta == "own":
            return original(prediction, t, x, *args, **kwargs)
        return stochastic_step(
            self.scheduler, self.eta, self.generator, prediction, t, x, kwargs.get("return_dict", True)
        )

    def _finish(self, state: State) -> State:
        self.decoder.remember = True
        self.entered = replace(state, i=state.steps, level=Level(1.0, 0.0, progress=1.0), x0=state.x)
        return self.control.look(self.entered)


def _with_sample(out: Any, x: Tensor) -> Any:
    if isinstance(out, tuple):
        return (x, *out[1:])
    out.prev_sample = x
    return out
