"""The runs of `benchmarks.compose`: one batch of scenes under one method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.scenes import Namer, Scene, both_present, in_order, ranks, read
from steer import Controller, Steered
from steer.diffusion.controllers import compose
from steer.diffusion.state import State

AT = 0.2
"""Progress of SAGA's step."""


@dataclass(frozen=True)
class Size:
    """What all runs share."""

    seeds: int
    steps: int
    guidance: float
    iterations: int
    noises: int
    side: int
    padding: bool
    call: dict[str, Any]


def parts_of(pipe: Any) -> dict[str, Any]:
    """What reads the words of its prompts, and what cuts them into tokens."""
    if hasattr(pipe, "unet"):
        return {"network": pipe.unet, "tokenizer": pipe.tokenizer}
    return {"network": pipe.transformer, "tokenizer": [one for one in (pipe.tokenizer, pipe.tokenizer_3) if one]}


def reader_of(pipe: Any, size: Size) -> compose.Reader:
    """Of the maps that all methods read."""
    return compose.Reader(**parts_of(pipe), parse=read, side=size.side, padding=size.padding)


def controllers_of(pipe: Any, size: Size, method: str, step: float) -> list[Controller]:
    """A method by its name, `step` its step size."""
    common = {**parts_of(pipe), "parse": read, "side": size.side, "padding": size.padding}
    learnt = {"iterations": size.iterations, "noises": size.noises, "lr": step, **common}
    if method == "attend-and-excite":
        return [compose.attend_and_excite(strength=step, **common)]
    if method == "initno":
        return [compose.initno(iterations=size.iterations, **common)]
    if method == "saga":
        return [compose.saga(at=AT, **learnt)]
    if method == "saga, not rescaled":
        return [replace(compose.saga(at=AT, **learnt), rescaled=False)]
    if method == "saga+":
        return [compose.saga_plus(strength=step, **learnt)]
    if method == "aligned":
        return [compose.aligned(strength=step, **common)]
    if method == "plain":
        return []
    return [compose.aligned(strength=step, terms=(method,), **common)]  # one of its losses


@dataclass(frozen=True)
class Spread(Controller):
    """Notes the standard deviation of each channel of x at SAGA's step, over all particles of a prompt, in `found`."""

    found: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    def look(self, state: State) -> State:
        if state.i == round(AT * state.steps):
            self.found.append(state.grouped(state.x).std((1, 3, 4)))
        return state


def steered(pipe: Any, size: Size, controllers: Sequence[Controller], asked: Sequence[Scene], n: int, seed: int) -> Any:
    """n pictures of each scene."""
    return Steered(pipe, controllers)(
        [scene.prompt for scene in asked],
        n=n,
        num_inference_steps=size.steps,
        **size.call,
        guidance_scale=size.guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    )


def sampled(
    pipe: Any, size: Size, method: str, step: float, asked: Sequence[Scene], seed: int
) -> tuple[dict[str, Any], Tensor]:
    """A row of the table, and the pictures (scenes, seeds, 3, h, w)."""
    spread = Spread()
    out = steered(pipe, size, [*controllers_of(pipe, size, method, step), spread], asked, size.seeds, seed)
    pictures = out.candidates.pictures
    found = ranks(pictures, asked)
    row = {
        "both": both_present(found).tolist(),
        "in order": in_order(found).tolist(),
        "pixel std": pictures.flatten(2).std(-1).tolist(),
        "clipped": ((pictures <= 0) | (pictures >= 1)).double().flatten(2).mean(-1).tolist(),
        "spread": spread.found[0].tolist(),
        "pictures": pictures.shape[0] * pictures.shape[1],
    }
    return {**row, "rows": out.ledger.rows, "backward_rows": out.ledger.backward_rows}, pictures


def refinement(pipe: Any, size: Size, step: float, asked: Sequence[Scene], seed: int) -> dict[str, Any]:
    """Two stages from each of two seeds, and the better of the two first stages: two runs a picture, all of them.

    With more seeds than two, so many pairs of them.
    """
    reader = reader_of(pipe, size)
    refined, best, rows, backward = [], [], 0, 0
    for pair in range(max(1, size.seeds // 2)):
        both = []
        for k in range(2):

            def run(controllers: list[Controller], at: int = seed + 10**4 * (2 * pair + k)) -> Any:
                return steered(pipe, size, controllers, asked, 1, at)

            both.append(compose.refined(run, reader, Namer(), step))
        refined += [_in_order(one.pictures, one.chosen, asked) for one in both]
        scores = torch.tensor([[verdict.score for verdict in one.verdicts[0]] for one in both])
        best.append(_in_order(torch.stack([one.pictures[0] for one in both]), scores.argmax(0).tolist(), asked))
        rows += sum(one.ledger.rows for one in both)
        backward += sum(one.ledger.backward_rows for one in both)
    return {
        "refined": torch.stack(refined, 1).tolist(),
        "best of 2 seeds": torch.stack(best, 1).tolist(),
        "rows": rows,
        "backward_rows": backward,
        "pictures": len(refined) * len(asked),
    }


def _in_order(pictures: Tensor, chosen: Sequence[int], asked: Sequence[Scene]) -> Tensor:
    """(scenes,) `in_order` of the chosen of pictures (2, scenes, 3, h, w)."""
    return in_order(ranks(pictures[list(chosen), torch.arange(len(chosen))][:, None], asked))[:, 0]


@dataclass(frozen=True)
class Meter(Controller):
    """Notes the value of each of `Align`'s losses at half of the run, in `found`."""

    reader: compose.Reader
    terms: tuple[str, ...]
    found: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    evaluates = True

    def wrap(self, denoiser: Any) -> Any:
        return self.reader.wrap(denoiser)

    @torch.no_grad()
    def look(self, state: State) -> State:
        if state.i == state.steps // 2:
            maps = self.reader.maps(state, state.x)
            for term in self.terms:
                self.found[term] = state.grouped(self.reader.values(state, maps, compose.Align((term,))))
        return state


def term_values(pipe: Any, size: Size, method: str, step: float, asked: Sequence[Scene], seed: int) -> dict[str, Any]:
    """Row of all losses (scenes, seeds) under the steps of one of them, or of none."""
    meter = Meter(reader_of(pipe, size), ("missing", "mixing", "spatial"))
    out = steered(pipe, size, [*controllers_of(pipe, size, method, step), meter], asked, size.seeds, seed)
    cost = {"rows": out.ledger.rows, "backward_rows": out.ledger.backward_rows, "pictures": size.seeds * len(asked)}
    return {**{term: values.tolist() for term, values in meter.found.items()}, **cost}
