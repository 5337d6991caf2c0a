"""Stage 1, a verifier's look at it, and stage 2 from the same noise with its faults repaired: the better of the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from steer.diffusion.control import Controller, Denoiser, during
from steer.diffusion.controllers.compose.excite import AttentionStep
from steer.diffusion.controllers.compose.objectives import Align, Fault, Loss, Repair
from steer.diffusion.controllers.compose.reading import Reader
from steer.diffusion.controllers.compose.verify import Verdict, Verifier, attended, verify
from steer.diffusion.ledger import Ledger
from steer.diffusion.state import State

FIRST = 1e-9
"""A stretch of the run that holds its first step alone."""


class Output(Protocol):
    """What `Steered` returns, as far as it is used here."""

    images: Any
    candidates: Any
    ledger: Ledger


@dataclass(frozen=True)
class Refined:
    """Two stages, and the better one of each image.

    stages    the outputs of both
    pictures  (2, images, 3, h, w) in [0, 1]
    verdicts  of both stages, image by image
    faults    what stage 2 repaired
    ledger    the cost of all: both runs, and the verifier's calls among the reward calls
    """

    stages: tuple[Output, Output]
    pictures: Tensor = field(repr=False)
    verdicts: tuple[tuple[Verdict, ...], tuple[Verdict, ...]]
    faults: tuple[tuple[Fault, ...], ...]
    ledger: Ledger

    @property
    def chosen(self) -> list[int]:
        """0 or 1 for each image, the stage with the higher score; the first if they are equal."""
        return [int(after.score > before.score) for before, after in zip(*self.verdicts, strict=True)]

    @property
    def images(self) -> list[Any]:
        """The chosen images, of the kind that the pipeline returns."""
        return [self.stages[stage].images[k] for k, stage in enumerate(self.chosen)]


def refined(
    run: Callable[[list[Controller]], Output],
    reader: Reader,
    verifier: Verifier,
    strength: float = 20.0,
    stop: float = 0.5,
    threshold: float = 0.5,
    loss: Loss = Align(),
) -> Refined:
    """Fine-grained alignment and noise refinement (arXiv 2503.06506): two runs, the second on a repaired noise.

    >>> def run(controllers):
    ...     generator = torch.Generator().manual_seed(0)
    ...     return Steered(pipe, [*controllers, code(reward)], eta=1.0)(prompt, n=4, generator=generator)
    >>> best = refined(run, Reader(pipe.unet, pipe.tokenizer), ClipVerifier())

    Stage 1 takes a step of `strength` down `loss` at each step before progress `stop`. The verifier then scores every
    entity, with and without its attributes, on the picture and on the box of its attention. Stage 2 starts from the
    same noise, moved by one step down the losses of each faulty entity in turn, see `Repair`; scores under `threshold`
    are faults, or else the lowest.

    run  makes the pictures under the controllers that it is given, from the same noise each time

    Raises ValueError if the second run starts from another noise than the first, and as `Reader` and `verify` do.
    """
    stage = during(AttentionStep(reader, loss, strength), 0.0, stop)
    first = _Stage.made(run, [stage], reader, verifier)
    faults = tuple(verdict.faults(threshold) for verdict in first.verdicts)
    turns = range(max(map(len, faults)))
    repairs = [during(AttentionStep(reader, Repair(faults, turn), strength), 0.0, FIRST) for turn in turns]
    second = _Stage.made(run, [*repairs, stage], reader, verifier)
    if not torch.equal(first.noise, second.noise):
        raise ValueError(
            "the second run started from another noise than the first; make a generator with the same seed in `run`."
        )
    pictures, verdicts = torch.stack([first.pictures, second.pictures]), (first.verdicts, second.verdicts)
    return Refined((first.output, second.output), pictures, verdicts, faults, _sum(first.cost, second.cost))


@dataclass(frozen=True)
class _Stage:
    output: Output
    noise: Tensor
    pictures: Tensor
    verdicts: tuple[Verdict, ...]
    cost: Ledger

    @classmethod
    def made(cls, run: Any, controllers: list[Controller], reader: Reader, verifier: Verifier) -> _Stage:
        recorder = Recorder(reader)
        output = run([recorder, *controllers])
        found, winners = recorder.found, output.candidates.winners
        every = torch.arange(len(winners))
        pictures, maps = output.candidates.pictures[every, winners], found["maps"][every, winners]
        verdicts = []
        for picture, rows, text in zip(pictures, maps, found["prompts"], strict=True):
            seen = reader.seen(rows[None], text)
            verdicts.append(verify(verifier, picture, seen.constraints, attended(seen)))
        asked = sum(4 * len(verdict.fine) for verdict in verdicts)
        return cls(output, found["noise"], pictures, tuple(verdicts), _sum(output.ledger, Ledger(reward_calls=asked)))


@dataclass(frozen=True)
class Recorder(Controller):
    """Keeps the maps of attention at progress `at`, for each particle that reaches the final look, in `found`.

    found  maps (P, n, tokens, h, w), noise (P, n, ...) and prompts of the latest run

    One row a particle, of the conditional branch. List it first.
    """

    reader: Reader
    at: float = 0.5
    found: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    evaluates = True

    def start(self, state: State) -> State:
        self.reader.check(state)
        self.found.clear()
        self.found.update(noise=state.grouped(state.x).clone(), prompts=state.run.prompts)
        return state

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        return self.reader.wrap(denoiser)

    @torch.no_grad()
    def look(self, state: State) -> State:
        if state.finished:
            self.found["maps"] = state.grouped(state.memory[self._key])
        elif state.i == min(state.steps - 1, round(self.at * state.steps)):
            maps = self.reader.maps(state, state.x, state.label)
            return replace(state, memory={**state.memory, self._key: maps})
        return state

    @property
    def _key(self) -> str:
        return f"{id(self)}.maps"


def _sum(*ledgers: Ledger) -> Ledger:
    return Ledger(*(sum(values) for values in zip(*map(astuple, ledgers), strict=True)))
