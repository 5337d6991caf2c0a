"""Methods side by side on one pipeline: same prompts, same noise for particle 0, same number of denoiser rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer.diffusion.control import Controller
from steer.diffusion.controllers import best_of_n, code
from steer.diffusion.ledger import Ledger
from steer.diffusion.pipelines import Steered, SteeredOutput
from steer.rewards import Reward
from steer.rewards.border import unknown


@dataclass(frozen=True)
class Budget:
    """n particles for `steps` steps: n * steps denoiser rows a picture, times 2 under classifier-free guidance."""

    n: int = 8
    steps: int = 20
    block: int = 4
    guidance: float = 3.0


METHODS: dict[str, Callable[[Reward, Budget], Sequence[Controller]]] = {
    "plain": lambda reward, budget: (),
    "best-of-n": lambda reward, budget: (best_of_n(reward),),
    "code": lambda reward, budget: (code(reward, budget.block, common_start=False),),
}
"""name -> controllers; all run n particles for the same steps. Plain sampling keeps every picture that its rows buy."""


def controllers_of(method: str, reward: Reward, budget: Budget) -> Sequence[Controller]:
    """The controllers of a method. Raises ValueError for an unknown one, with close matches."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return METHODS[method](reward, budget)


@dataclass(frozen=True)
class Outcome:
    """What one method made.

    pictures  (prompts, kept, 3, h, w) in [0, 1]; kept = images for a search, images x n for plain sampling
    target    (prompts, kept) the reward of these pictures
    ledger    the cost of all of them
    """

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
    """Run one method for `images` pictures of each prompt; `on_step(share)` is told what part of the steps is done.

    Every method spends images x n x steps denoiser rows a prompt and guidance branch; particle 0 has the same noise.
    """
    controllers = controllers_of(method, reward, budget)

    def tell(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        on_step((i + 1) / budget.steps)
        return {}

    output = Steered(pipe, controllers)(
        list(prompts),
        n=budget.n,
        num_images_per_prompt=images,
        num_inference_steps=budget.steps,
        guidance_scale=budget.guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt" if controllers else "latent",  # the candidates of plain sampling are decoded below
        callback_on_step_end=tell,
    )
    made = output.images if controllers else output.candidates.pictures.flatten(0, 1)
    pictures = made.float().unflatten(0, (len(prompts), -1))
    return Outcome(method, pictures, score(reward, pictures, prompts), output.ledger, output)


@torch.no_grad()
def score(reward: Reward, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    """(prompts, kept) rewards of pictures (prompts, kept, 3, h, w)."""
    kept = pictures.shape[1]
    return reward(pictures.flatten(0, 1), [prompt for prompt in prompts for _ in range(kept)]).view(-1, kept)
