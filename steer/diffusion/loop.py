"""Our own driver: a denoising loop that yields its state before every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from steer.diffusion.control import Controller, Denoiser, as_chain
from steer.diffusion.ledger import Ledger
from steer.diffusion.noise import ParticleNoise
from steer.diffusion.solve import Solver, ddim
from steer.diffusion.state import Level, Run, State


def sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    schedule: Sequence[Level],
    controllers: Controller | Sequence[Controller] = (),
    *,
    n: int = 1,
    solver: Solver | None = None,
    generator: torch.Generator | None = None,
    prompts: Sequence[str] = ("",),
    cond: Any = None,
    x: Tensor | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[State]:
    """Denoise n particles for each prompt under controllers, yielding the state at every step and at the end.

    denoiser   (x (b, *shape), level, cond) -> x0 (b, *shape); b rows, times `denoiser.branches(cond)` if it has that
    shape      shape of one particle
    schedule   levels from noise to clean, `steps + 1` of them (see `schedule.vp`, `flow`, `karras`)
    solver     the transition; default `ddim(eta=1)`, the ancestral step
    generator  particle 0 of every prompt draws from it, particle k >= 1 from a generator keyed by its state and k
    cond       a tree of tensors (P, ...) for the denoiser, repeated for the particles of each prompt
    x          initial particles (P, *shape) to share by the particles of a prompt, in place of fresh noise
    decode     clean particles -> what rewards see; default: the particles themselves

    The yielded state has been looked at and has not moved yet; the last one (i == steps) holds the finished sample in
    both x and x0. Raises ValueError for a search under a solver that draws no noise.
    """
    solver = ddim() if solver is None else solver
    control = as_chain(controllers)
    _check(control, solver, schedule, prompts)
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ()))) if generator is None else generator
    noise, ledger = ParticleNoise(n, generator), Ledger()
    levels, eta = tuple(schedule), getattr(solver, "eta", None)
    run = Run(tuple(prompts), n, len(levels) - 1, noise, _counted_decode(decode, ledger), ledger, levels, eta)
    state = control.start(_initial(shape, levels[0], run, x))
    cond = tree_map(lambda leaf: leaf.repeat_interleave(n, 0) if isinstance(leaf, Tensor) else leaf, cond)
    network = _network(control.wrap(_counted(denoiser, ledger)), cond, share=not control.couples_rows)

    for i, level in enumerate(levels[:-1]):
        state = control.look(replace(state, i=i, level=level, x0=None, network=network)).evaluated()
        ledger.seconds += time.perf_counter() - began
        yield state
        began = time.perf_counter()
        drawn = noise.drawn
        x, history = solver(state, levels[i + 1], state.denoise)
        label = state.label if noise.drawn == drawn else state.alias
        state = replace(state, x=x, history=history, label=label)
    state = last_look(control, replace(state, i=run.steps, level=levels[-1]))
    ledger.seconds += time.perf_counter() - began
    yield state


def last_look(control: Controller, state: State) -> State:
    """The look at the finished sample, where x and x0 are one thing: an edit of either is an edit of both."""
    left = control.look(replace(state, x0=state.x, network=None, history={**state.history, "sample": state.x}))
    rest = dict(left.history)
    untouched = torch.equal(left.x0, rest.pop("sample"))
    sample = left.x if untouched else left.x0
    return replace(left, x=sample, x0=sample, history=rest)


def finished(states: Iterator[State]) -> State:
    """The last state of a run."""
    for state in states:
        pass
    return state


def _initial(shape: Sequence[int], level: Level, run: Run, x: Tensor | None) -> State:
    p = len(run.prompts)
    if x is not None:
        if tuple(x.shape) != (p, *shape):
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (prompts, *shape) = {(p, *shape)}.")
        state = State.begin(x.repeat_interleave(run.n, 0), level, run)
        return replace(state, label=torch.arange(p).repeat_interleave(run.n) * run.n)
    generator = run.noise.generator
    unit = run.noise.draw(lambda: torch.randn((p, *shape), generator=generator, device=generator.device))
    return State.begin(level.sigma * unit, level, run)


def _counted_decode(decode: Callable[[Tensor], Tensor] | None, ledger: Ledger) -> Callable[[Tensor], Tensor]:
    if decode is None:
        return lambda x0: x0

    def counted(x0: Tensor) -> Tensor:
        ledger.decodes += len(x0)
        return decode(x0)

    return counted


def _counted(denoiser: Denoiser, ledger: Ledger) -> Denoiser:
    """The bare denoiser, every call counted: inside all wraps, which may call it more than once or in part."""
    branches = getattr(denoiser, "branches", lambda cond: 1)

    def counted(x: Tensor, level: Level, cond: Any) -> Tensor:
        ledger.rows += len(x) * branches(cond)
        return denoiser(x, level, cond)

    return counted


def _network(denoiser: Denoiser, cond: Any, share: bool) -> Callable[[Tensor, Level, Tensor], Tensor]:
    """The denoiser on all slots, evaluated once for slots of one label that are indeed equal."""

    def denoise(x: Tensor, level: Level, label: Tensor) -> Tensor:
        keep, back = first_of(label)
        # a controller may have edited some of the slots of a label
        if not share or len(keep) == len(x) or not torch.equal(x[keep][back], x):
            return denoiser(x, level, cond)
        rows = tree_map(lambda leaf: leaf[keep] if isinstance(leaf, Tensor) else leaf, cond)
        return denoiser(x[keep], level, rows)[back]

    return denoise


def first_of(label: Tensor) -> tuple[Tensor, Tensor]:
    """keep: one slot for each distinct label, its first; back: where each slot finds its row among them."""
    _, back = torch.unique(label, return_inverse=True)
    keep = torch.full((int(back.max()) + 1,), len(label)).scatter_reduce(0, back, torch.arange(len(label)), "amin")
    return keep, back


def _check(control: Controller, solver: Solver, schedule: Sequence[Level], prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts = {prompts!r}: expected a non-empty list, one string for each group of particles.")
    if len(schedule) < 2:
        raise ValueError(f"a schedule of {len(schedule)} levels: expected at least two, from noise to clean.")
    if control.needs_noise and not solver.noisy:
        raise ValueError(
            f"{solver!r} draws no noise, so all children of a particle stay equal and a search between steps has "
            "nothing to choose. Use a solver with noise, such as ddim(eta=1), or best_of_n, which chooses at the end."
        )
