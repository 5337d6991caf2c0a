"""What style injection needs beside a plain run: memory at 512 px, on a UNet with the widths of Stable Diffusion 1.5.

One layer a block, weights without meaning, two steps in a process of its own.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor

import steer
from steer.bench.cells import Peak
from steer.diffusion.attention import attending
from steer.diffusion.control import Controller
from steer.diffusion.controllers import style
from steer.diffusion.schedule import vp
from steer.diffusion.solve import ddim
from steer.diffusion.state import Level

BUDGET_MB = 512
WIDTHS, SIDE = (320, 640, 1280, 1280), 64
STEPS = 50
"""Of the paper, whose stored features are counted for comparison."""


def network(widths: Sequence[int], side: int) -> Any:
    """A UNet of Stable Diffusion 1's kind, filled with a constant."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        made = UNet2DConditionModel(
            sample_size=side,
            block_out_channels=tuple(widths),
            layers_per_block=1,
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    made = made.to_empty(device="cpu").eval().requires_grad_(False)
    for weights in (*made.parameters(), *made.buffers()):
        weights.fill_(1e-3)
    return made


def _peak(unet: Any, side: int, controllers: Sequence[Controller]) -> float | None:
    """MB at the peak of a run of two steps, the second of which injects."""

    def denoiser(x: Tensor, level: Level, cond: dict[str, Tensor]) -> Tensor:
        return unet(x, 500, cond["words"][:, 0], return_dict=False)[0]

    peak, generator = Peak("cpu"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        run = steer.sample(
            denoiser, (4, side, side), vp(2), controllers, solver=ddim(0.0), cond=_words(), generator=generator
        )
        steer.finished(run)
    return peak.megabytes()


def _words() -> dict[str, Tensor]:
    return {"words": torch.zeros(1, 1, 77, 768)}


def measured(widths: Sequence[int] = WIDTHS, side: int = SIDE) -> dict[str, float | None]:
    """Peaks of this process in a plain run and then in one of StyleID, MB; None where nobody keeps count.

    stored_mb  what queries of the content, and keys and values of the style, of all of the paper's steps would take
    """
    unet, stored = network(widths, side), 0.0

    def count(ask: Any, attend: Any) -> Tensor:
        nonlocal stored
        stored += STEPS / 2 * sum(4 * part.numel() for part in (ask.query, ask.key, ask.value)) / 1e6  # in two steps
        return attend(ask)

    noise = torch.randn(3, 1, 4, side, side, generator=torch.Generator().manual_seed(1))
    reference = steer.Trajectory(noise, tuple(vp(2)), _words(), ("",))
    with attending(unet, style.decoder(unet), count):
        plain = _peak(unet, side, [])
    styled = _peak(unet, side, [style.style_id(unet, reference, reference)])
    above = None if plain is None or styled is None else styled - plain
    return {"plain_mb": plain, "styleid_mb": styled, "above_mb": above, "budget_mb": BUDGET_MB, "stored_mb": stored}


def memory() -> dict[str, float | None]:
    """What is `measured`, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured).result()
