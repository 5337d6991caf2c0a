"""What stands in for the `forward` of a pipeline's network while it is attached."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steer.diffusion.control import Chain
from steer.diffusion.pipelines.denoiser import NetworkDenoiser
from steer.diffusion.pipelines.families import family_of
from steer.diffusion.pipelines.family import guidance
from steer.diffusion.pipelines.levels import input_scale, level_at, prediction_for
from steer.diffusion.pipelines.network import Call, evaluate, named, plan
from steer.diffusion.state import Level, Run, State


class NetworkStation:
    """The network of a pipeline: equal rows evaluated once, exact batches, controllers' wraps, every row counted."""

    def __init__(self, pipe: Any, exact: bool):
        self.pipe, self.scheduler, self.exact = pipe, pipe.scheduler, exact
        self.module, self.input = getattr(pipe, family_of(pipe).network), family_of(pipe).input
        self.original = self.module.forward

    def begin(self, run: Run, control: Chain) -> None:
        """Start a new call of the pipeline."""
        self.run = run
        denoise = self._denoise
        wrapped = control.wrap(denoise)
        self.wrapped = None if wrapped is denoise else wrapped

    def __call__(self, state: State, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The network's output for all rows of a call on the particles of `state`."""
        call = Call(named(self.module, args, kwargs), self.input, len(state.x))
        if len(call.kwargs[self.input]) % call.slots:
            return self.original(*args, **kwargs)  # not the pipeline's own call
        how = plan(state.label, state.n, self.exact)
        if len(how.batches[0]) < call.slots and not call.agrees(how.source):
            how = plan(torch.arange(call.slots), state.n, self.exact)  # somebody edited a particle: share nothing
        self.progress = state.i / state.steps
        act = self._plain if self.wrapped is None else self._guided
        return act(call) if len(how.batches[0]) == call.slots else evaluate(act, call, how)

    def _counted(self, **kwargs: Any) -> Any:
        self.run.ledger.rows += len(kwargs[self.input])
        return self.original(**kwargs)

    def _plain(self, call: Call) -> Any:
        return self._counted(**call.kwargs)

    def _guided(self, call: Call) -> tuple[Tensor]:
        """The prediction that means the wrapped denoiser's x0, for all branches: guidance then leaves it as it is."""
        self.call = call
        level = level_at(self.scheduler, call.kwargs["timestep"], self.progress)
        x = call.kwargs[self.input][: call.slots] * input_scale(self.scheduler, level)
        prediction = prediction_for(self.scheduler, self.wrapped(x, level, call.cond), x, level)
        return (torch.cat([prediction] * call.blocks),)

    def _denoise(self, x: Tensor, level: Level, cond: dict[str, Tensor]) -> Tensor:
        return NetworkDenoiser(self._counted, self.call, self.scheduler, guidance(self.pipe))(x, level, cond)
