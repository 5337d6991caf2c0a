"""CoDe in the order of its reference code: the baseline of every comparison, at its own cost.

Not a part of the library, where a search looks before it moves. The noise is that of the particles, as everywhere in
steer; the reference draws and drops some more in its look-ahead, which is left out so that both see the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from steer.diffusion.ledger import Ledger
from steer.diffusion.noise import ParticleNoise
from steer.diffusion.solve import Solver, ddim, draw_like
from steer.diffusion.state import Level, Look, Run, State


@torch.no_grad()
def code_as_published(
    denoiser: Any,
    shape: Sequence[int],
    schedule: Sequence[Level],
    reward: Callable[[Any, list[str]], Tensor],
    *,
    n: int,
    block: int,
    solver: Solver | None = None,
    generator: torch.Generator | None = None,
    prompts: Sequence[str] = ("",),
    cond: Any = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> State:
    """Blockwise best-of-n as published (arXiv 2502.00968): move, look ahead by one more network call, choose.

    Arguments as for `steer.sample`. All n rows are evaluated at every step, equal or not, and n more at the end of each
    block but the last: n (T + floor((T - 1) / block)) rows, about n T (1 + 1 / block), each guidance branch a row.
    Returns the finished state; its trace holds the looks as a `steer.Search` records them.
    """
    began, solver, ledger = time.perf_counter(), solver or ddim(), Ledger()
    branches = getattr(denoiser, "branches", lambda cond: 1)
    cond = tree_map(lambda leaf: leaf.repeat_interleave(n, 0) if isinstance(leaf, Tensor) else leaf, cond)

    def denoise(x: Tensor, level: Level) -> Tensor:
        ledger.rows += len(x) * branches(cond)
        return denoiser(x, level, cond)

    noise = ParticleNoise(n, torch.Generator().manual_seed(0) if generator is None else generator)
    run = Run(tuple(prompts), n, len(schedule) - 1, noise, decode or (lambda x0: x0), ledger)
    state = State.begin(torch.zeros(len(prompts) * n, *shape), schedule[0], run)
    state = replace(state, x=schedule[0].sigma * draw_like(state))
    state = state.gather(torch.zeros(len(prompts), n, dtype=torch.long))
    for i, (level, to) in enumerate(zip(schedule[:-1], schedule[1:], strict=True), 1):
        x0 = denoise(state.x, level)
        x, history = solver(replace(state, i=i - 1, level=level, x0=x0), to, denoise)
        state = replace(state, i=i, level=to, x=x, history=history)
        if state.finished or i % block == 0:
            state = _chosen(replace(state, x0=x if state.finished else denoise(x, to)), reward, decode is not None)
    ledger.seconds = time.perf_counter() - began
    return state


def _chosen(state: State, reward: Callable[[Any, list[str]], Tensor], decoded: bool) -> State:
    """All particles of a prompt continue its best one."""
    run, rows = state.run, len(state.x)
    run.ledger.decodes += rows * decoded
    run.ledger.reward_calls += rows
    pictures, prompts = run.decode(state.x0), [prompt for prompt in run.prompts for _ in range(run.n)]
    scores = state.grouped(torch.as_tensor(reward(pictures, prompts)).float().cpu())
    index = scores.argmax(-1, keepdim=True).expand_as(scores)
    return replace(state.gather(index), trace=(*state.trace, Look(state.i, scores, index)))
