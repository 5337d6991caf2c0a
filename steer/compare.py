"""Methods side by side on one pipeline: same prompts, same noise for particle 0, same number of denoiser rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.control import Controller
from steer.diffusion.controllers import best_of_n, code
from steer.diffusion.ledger import Ledger
from steer.diffusion.pipelines import Steered, SteeredOutput
from steer.rewards import Reward


@dataclass(frozen=True)
class Budget:
    """n particles for `steps` steps: n * steps denoiser rows a picture, times 2 under classifier-free guidance."""

    n: int = 8
    steps: int = 20
    block: int = 4
    guidance: float = 3.0


Plan = Callable[[Reward, Budget], tuple[Sequence[Controller], int, int]]

METHODS: dict[str, Plan] = {
    "plain": lambda reward, budget: ((), 1, budget.steps * budget.n),
    "best-of-n": lambda reward, budget: ((best_of_n(reward),), budget.n, budget.steps),
    "code": lambda reward, budget: ((code(reward, budget.block, common_start=False),), budget.n, budget.steps),
}
"""name -> (controllers, particles, steps); the plain sampler spends its rows on n times as many steps."""


def plan_of(method: str) -> Plan:
    """The plan of a method. Raises ValueError for an unknown one, with close matches."""
    if method not in METHODS:
        near = get_close_matches(method, METHODS)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no method is called {method!r}{hint} Expected one of {tuple(METHODS)}.")
    return METHODS[method]


@dataclass(frozen=True)
class Outcome:
    """One method on some prompts: pictures (b, 3, h, w) in [0, 1], their target reward (b,), the cost of all."""

    method: str
    pictures: Tensor
    target: Tensor
    ledger: Ledger
    output: SteeredOutput


def run(
    pipe: Any,
    method: str,
    reward: Reward,
    prompts: Sequence[str],
    budget: Budget,
    seed: int = 0,
    images: int = 1,
    on_step: Callable[[float], None] = lambda share: None,
) -> Outcome:
    """Run one method with `images` pictures for each prompt; `on_step(share)` is told what part of the steps is done.

    The target reward of the final pictures is taken outside the search, so that every method is scored alike.
    """
    controllers, n, steps = plan_of(method)(reward, budget)

    def tell(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        on_step((i + 1) / steps)
        return {}

    output = Steered(pipe, controllers)(
        list(prompts),
        n=n,
        num_images_per_prompt=images,
        num_inference_steps=steps,
        guidance_scale=budget.guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        callback_on_step_end=tell,
    )
    pictures = output.images.float()
    with torch.no_grad():
        target = reward(pictures, [prompt for prompt in prompts for _ in range(images)])
    return Outcome(method, pictures, target, output.ledger, output)
