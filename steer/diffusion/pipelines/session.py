"""What stands in for a pipeline's own methods while it is attached."""

from __future__ import annotations

import inspect
import time
from bisect import bisect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.control import Chain
from steer.diffusion.ledger import Ledger
from steer.diffusion.loop import last_look
from steer.diffusion.noise import DrawPerParticle, ParticleNoise
from steer.diffusion.pipelines import history
from steer.diffusion.pipelines.decoder import Decoder
from steer.diffusion.pipelines.embeddings import encode, prompts_of
from steer.diffusion.pipelines.families import family_of
from steer.diffusion.pipelines.family import Given, pictures, running
from steer.diffusion.pipelines.fill import Fill
from steer.diffusion.pipelines.levels import level_at, limits_x0, predicted_x0, prediction_for, schedule
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

    def __init__(self, pipe: Any, control: Chain, n: int, eta: float | None, exact: bool, chunk: int | None):
        self.pipe, self.control, self.n, self.eta, self.exact = pipe, control, n, eta, exact
        self.family, self.scheduler = family_of(pipe), pipe.scheduler
        self.network, self.decoder = NetworkStation(pipe, exact, chunk), Decoder(pipe.vae.decode, chunk)
        self.prompts: list[str] = [""]
        self.given: Given = {}
        self.fill, self.begin = Fill(n), None

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
        return Candidates(state.grouped(state.x), final_scores(self.state), state.run.decode)

    # stand-ins, in the order in which a pipeline calls them

    def check_inputs(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        """For the pipeline's check, its first act: a call begins; notes what it is given."""
        self.given = running(self.pipe)
        self.state, self.begin, self.timed, self.skipped = None, None, False, 0
        self.prompts = prompts_of(self.given)
        if self.given.get("denoising_end") is not None:
            raise ValueError(
                f"denoising_end = {self.given['denoising_end']} leaves an unfinished sample, which no search can "
                "choose; leave it out, and steer the second pipeline on the finished pictures (strength = ...)."
            )
        return original(*args, **kwargs)

    def encode_prompt(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        """For the text encoders: all particles of an image get the embeddings of its prompt."""
        return encode(original, len(self.prompts), args, kwargs)

    def set_timesteps(self, original: Method, *args: Any, **kwargs: Any) -> None:
        """For the scheduler's: some pipelines call it before, and some after, they make the initial noise."""
        original(*args, **kwargs)
        self.timed = True
        if self.begin is not None:
            self.begin()
            self.begin = None

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

    def prepare_latents(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        """For the initial noise: every particle gets its own, or shares the latents given."""
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
            made = original(*call.args, **call.kwargs)
        x, *rest = made if isinstance(made, tuple) else (made,)
        x = x.clone()  # filled in when the call begins
        self.fill.note(call.arguments, rest)
        if latents is None and noise.drawn == 0 and not isinstance(self.generator, list):
            self.shared = self.n > 1  # a run that goes on from latents, without noise
        if self.timed:
            self._begin(x, noise, images)
        else:
            self.begin = partial(self._begin, x, noise, images)
        return (x, *rest) if isinstance(made, tuple) else x

    def prepare_mask_latents(self, original: Method, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """For the masks of inpainting."""
        return self.fill.masks(original, args, kwargs)

    def forward(self, original: Method, *args: Any, **kwargs: Any) -> Any:
        """For the network's `forward`; where a controller evaluates at the coming look, that look asks in its place."""
        if self.state is None or self._done:
            return original(*args, **kwargs)
        later = self.control.evaluates and self.calls in self.looks
        state = replace(self.state, i=bisect(self.looks, self.calls) - 1)  # of the step to come, not of the last look
        return self.network(state, self.skipped + self.calls, args, kwargs, later)

    def step(self, original: Method, prediction: Tensor, t: Tensor, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """For the scheduler's `step`: look, gather, then move with fresh noise for every particle."""
        if self.state is None:
            raise ValueError(
                f"{type(self.pipe).__name__} takes the latents that it is given without preparing them, so no particle "
                "gets its own noise; leave out `latents`."
            )
        if self.eta is not None and kind_of(self.scheduler).eta == "own":
            kwargs["eta"] = self.eta
        if self.calls == 0:
            self._take(kwargs.get("eta", self.eta))
        state = replace(self.state, x=sample)
        if self.calls in self.looks:
            state, prediction = self._look(state, prediction, t)
        self.calls += 1
        noise, drawn = state.run.noise, state.run.noise.drawn
        with DrawPerParticle(noise, prediction.shape):
            out = self._move(original, prediction, t, state.x, *args, **kwargs)
        x = out[0] if torch.isfinite(state.logw).all() else out[0][state.alias.to(sample.device)]
        x = self.fill.finished(x) if self._done else x
        fresh = noise.drawn > drawn or isinstance(self.generator, list)
        state = replace(state, x=x, label=state.alias if fresh else state.label)
        self.state = self._finish(state) if self._done else state
        self.ledger.seconds = time.perf_counter() - self.began
        return _with_sample(out, self.state.x)

    @property
    def _done(self) -> bool:
        return self.calls + self.skipped == len(self.scheduler.timesteps)

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
        levels = tuple(schedule(self.scheduler, self.skipped))
        decode = partial(pictures, self.pipe, self.family, self.decoder, self.given)
        run = Run(prompts, self.n, len(self.looks), noise, decode, schedule=levels)
        self.decoder.begin(run.ledger, images if self.exact else None)
        state = State.begin(x, levels[0], run)
        if self.shared:
            state = replace(state, label=state.label // self.n * self.n)
        state = self.control.start(replace(state, history=self.fill.rows()))
        x.copy_(state.x)
        self.fill.take(dict(state.history))
        self.state = replace(state, history={})
        self.network.begin(run, self.control, self.given)

    def _take(self, eta: float | None) -> None:
        """The noise dial of this call's steps is known."""
        if self.n > 1 and (self.control.needs_noise or self.shared):
            check_noise(self.scheduler, eta)
        dial = None if limits_x0(self.scheduler) else kind_of(self.scheduler).dial(self.scheduler, eta or 0.0)
        self.state = replace(self.state, run=replace(self.state.run, eta=dial))

    def _look(self, state: State, prediction: Tensor, t: Tensor) -> tuple[State, Tensor]:
        i = self.looks.index(self.calls)
        level = level_at(self.scheduler, t, i / state.steps)
        rows = {**history.read(self.scheduler, state.x.shape), **self.fill.rows()}
        rows |= {"prediction": prediction, "x": state.x}
        if not self.control.evaluates:
            rows["x0"] = predicted_x0(self.scheduler, prediction, state.x, level)
        state = replace(state, i=i, level=level, x0=rows.get("x0"), history=rows, network=self.network.denoise)
        state = self.control.look(state).evaluated()
        rows = dict(state.history)
        prediction, x, x0 = rows.pop("prediction"), rows.pop("x"), rows.pop("x0", None)
        self.fill.take(rows)
        history.write(self.scheduler, rows)
        if x0 is None or not (_same(state.x0, x0) and _same(state.x, x)):  # evaluated or edited here: tell the solver
            prediction = prediction_for(self.scheduler, state.x0, state.x, level)
        return replace(state, history={}, network=None), prediction

    def _move(self, original: Method, prediction: Tensor, t: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.eta or kind_of(self.scheduler).eta == "own":
            return original(prediction, t, x, *args, **kwargs)
        return stochastic_step(
            self.scheduler, self.eta, self.generator, prediction, t, x, kwargs.get("return_dict", True)
        )

    def _finish(self, state: State) -> State:
        self.decoder.remember = True
        self.entered = replace(state, i=state.steps, level=Level(1.0, 0.0, progress=1.0), x0=state.x)
        return last_look(self.control, self.entered)


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or torch.equal(a, b)


def _with_sample(out: Any, x: Tensor) -> Any:
    if isinstance(out, tuple):
        return (x, *out[1:])
    out.prev_sample = x
    return out
