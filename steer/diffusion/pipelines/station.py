"""What stands in for the `forward` of a pipeline's network while it is attached."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.control import Chain
from steer.diffusion.pipelines.denoiser import NetworkDenoiser, output_for
from steer.diffusion.pipelines.families import family_of
from steer.diffusion.pipelines.family import Given
from steer.diffusion.pipelines.levels import input_scale, level_at, prediction_for
from steer.diffusion.pipelines.network import Call, Plan, evaluate, named, plan
from steer.diffusion.state import Level, Run, State


class NetworkStation:
    """The network of a pipeline: equal rows evaluated once, exact batches, controllers' wraps, every row counted."""

    def __init__(self, pipe: Any, exact: bool, chunk: int | None):
        self.pipe, self.scheduler, self.exact, self.chunk = pipe, pipe.scheduler, exact, chunk
        self.family = family_of(pipe)
        self.module = getattr(pipe, self.family.network)
        self.original = self.module.forward

    def begin(self, run: Run, control: Chain, given: Given) -> None:
        """Start a new call of the pipeline."""
        self.run, self.coupled, self.given, self.at = run, control.couples_rows, given, -1
        bare = self._denoise
        self.denoiser = control.wrap(bare)
        self.plain = self.denoiser is bare
        self.act = self._plain if self.plain else self._guided

    def __call__(self, state: State, at: int, args: tuple, kwargs: dict[str, Any], later: bool) -> Any:
        """The network's output for all rows of a call on the particles of `state`; zeros if `denoise` comes later.

        at  place of the coming step in the scheduler's timesteps
        """
        family = self.family
        channels, axis = state.x.shape[family.axis], family.axis
        call = Call(named(self.module, args, kwargs), family.input, len(state.x), family.rowless, channels, axis)
        if len(call.kwargs[family.input]) % call.slots:
            return self.original(*args, **kwargs)  # not the pipeline's own call
        second, self.at, self.progress = family.apart and at == self.at, at, state.i / state.steps
        self.call = self.call.with_free(call) if second else call.copy()
        if later:
            return self._output(torch.zeros_like(state.x), call)
        if self.plain or family.calls(self.pipe, self.given) == 1:
            return self._answer(call, state.label)
        if not second:
            self.answer = torch.empty_like(call.x)  # filled in at the second call, when both branches are known
            return (self.answer,)
        self.answer.copy_(self._answer(self.call, state.label)[0][: call.slots])
        return (self.answer,)

    def _answer(self, call: Call, label: Tensor) -> Any:
        how = self._plan(call, label)
        return self.act(call) if len(how.batches[0]) == call.slots else evaluate(self.act, call, how)

    def denoise(self, x: Tensor, level: Level, label: Tensor) -> Tensor:
        """x0 (P n, ...) by the wrapped network at any x (P n, ...), conditioned as in the pipeline's last call."""
        kwargs = self.call.put(x / input_scale(self.scheduler, level), self.call.cond)
        call = replace(self.call, kwargs=kwargs)
        how = self._plan(call, label)
        parts = [self.denoiser(x[slots.to(x.device)], level, call.take(slots).cond) for slots in how.batches]
        return torch.cat(parts)[how.back.to(x.device)]

    def _plan(self, call: Call, label: Tensor) -> Plan:
        if self.coupled:
            return plan(torch.arange(call.slots), self.run.n, exact=False)
        how = plan(label, self.run.n, self.exact, self.chunk)
        if len(how.batches[0]) < call.slots and not call.agrees(how.source):
            return plan(
                torch.arange(call.slots), self.run.n, self.exact, self.chunk
            )  # somebody edited a particle: share nothing
        return how

    def _counted(self, **kwargs: Any) -> Any:
        self.run.ledger.rows += len(kwargs[self.family.input])
        return self.original(**kwargs)

    def _plain(self, call: Call) -> Any:
        return self._counted(**call.kwargs)

    def _guided(self, call: Call) -> tuple[Tensor]:
        """The prediction that means the wrapped denoiser's x0, for all branches: guidance then leaves it as it is."""
        level = level_at(self.scheduler, self.scheduler.timesteps[self.at], self.progress)
        x = call.x * input_scale(self.scheduler, level)
        return self._output(prediction_for(self.scheduler, self.denoiser(x, level, call.cond), x, level), call)

    def _output(self, prediction: Tensor, call: Call) -> tuple[Tensor]:
        return (torch.cat([output_for(prediction, self.module, self.family)] * call.blocks),)

    def _denoise(self, x: Tensor, level: Level, cond: dict[str, Tensor]) -> Tensor:
        guidance = self.family.guidance(self.pipe, self.given)
        return NetworkDenoiser(self._counted, self.call, self.pipe, self.family, guidance)(x, level, cond)
