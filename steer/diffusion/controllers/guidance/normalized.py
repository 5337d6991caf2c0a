"""Normalized attention guidance: a negative prompt inside cross-attention, in a single row a particle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.controllers.guidance.branches import ASKED, FREE, Cond, evaluate
from steer.diffusion.controllers.guidance.layers import chosen
from steer.diffusion.state import Level

CONTEXT = "encoder_hidden_states"


@dataclass(frozen=True)
class NormalizedAttention(Controller):
    """The conditional branch, every cross-attention of which is pushed away from the negative prompt's.

    With z and z_n what a cross-attention reads from the prompt and from the negative prompt, it goes on with
    a z' + (1 - a) z, where z' = z + (s - 1) (z - z_n), shortened so that |z'|_1 <= tau |z|_1 at every position.

    network  the module that the denoiser calls; its cross-attention must take the prompt's embedding as it is
    scale    s; 1 does nothing. tau, alpha (a): as above

    Raises ValueError if the network has no such cross-attention; in a run without a negative (unconditional) branch, or
    with an attention mask.
    """

    network: nn.Module = field(repr=False)
    scale: float
    tau: float = 2.5
    alpha: float = 0.25

    def __post_init__(self):
        if self.scale < 1 or self.tau <= 0 or not 0 <= self.alpha <= 1:
            raise ValueError(
                f"nag(scale={self.scale}, tau={self.tau}, alpha={self.alpha}): expected scale >= 1, tau > 0 and alpha "
                "in [0, 1]."
            )
        self._modules()

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def guided(x: Tensor, level: Level, cond: Cond) -> Tensor:
            rows = cond.get(CONTEXT) if isinstance(cond, dict) else None
            if rows is None or rows.shape[1] != 2:
                raise ValueError(
                    f"nag needs conditioning with {CONTEXT} of two branches, the negative prompt first; call the "
                    "pipeline, or denoiser_of, with guidance_scale > 1, and put nag before other guidance."
                )
            with ExitStack() as stack:
                for module in self._modules():
                    stack.enter_context(self._pushed(module, rows[:, FREE]))
                return evaluate(denoiser, x, level, cond, (ASKED,))[0]

        return guided

    def _modules(self) -> list[Any]:
        return chosen(self.network, "", _reads_the_prompt, "cross-attention module that takes the prompt as it is")

    @contextmanager
    def _pushed(self, module: Any, negative: Tensor) -> Iterator[None]:
        """While active, the module reads both prompts, in twice the rows, and gives the mixture to its output layer."""

        def both(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            if kwargs.get("attention_mask") is not None:
                raise ValueError("nag: the network masks its prompts, which is not supported; use cfg.")
            (x,), asked = args, kwargs[CONTEXT]
            return (torch.cat([x, x]),), {**kwargs, CONTEXT: torch.cat([asked, negative.to(asked)])}

        def mixed(_: nn.Module, args: tuple) -> tuple:
            return (self._mixture(*args[0].chunk(2)),)

        handles = [
            module.register_forward_pre_hook(both, with_kwargs=True),
            module.to_out[0].register_forward_pre_hook(mixed),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _mixture(self, z: Tensor, negative: Tensor) -> Tensor:
        pushed = z + (self.scale - 1) * (z - negative)
        length, longest = (v.abs().sum(-1, keepdim=True) for v in (pushed, self.tau * z))
        return z + self.alpha * (pushed * (longest / length.clamp(min=1e-12)).clamp(max=1) - z)


def _reads_the_prompt(module: Any) -> bool:
    return getattr(module, "is_cross_attention", False) and not module.residual_connection
