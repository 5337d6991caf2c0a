"""What style injection needs beside a plain run: memory at 512 px, on a UNet with the widths of Stable Diffusion 1.5.

One layer a block, weights without meaning; two steps in a process of its own.
"""

from __future__ import annotations

import multiprocessing
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
SIDE = 64
STEPS = 50
"""Of the paper, whose stored features are counted for comparison."""


def network() -> Any:
    """The UNet, filled with a constant."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        made = UNet2DConditionModel(
            sample_size=SIDE,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=1,
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    made = made.to_empty(device="cpu").eval().requires_grad_(False)
    for weights in (*made.parameters(), *made.buffers()):
        weights.fill_(1e-3)
    return made


class _Denoiser:
    def __init__(self, unet: Any):
        self.unet = unet

    def __call__(self, x: Tensor, level: Level, cond: dict[str, Tensor]) -> Tensor:
        return self.unet(x, 500, cond["words"][:, 0], return_dict=False)[0]


def _peak(unet: Any, controllers: list[Controller]) -> float | None:
    denoiser, schedule, peak = _Denoiser(unet), vp(2), Peak("cpu")
    options = {"solver": ddim(0.0), "cond": _words(), "generator": torch.Generator().manual_seed(0)}
    with torch.no_grad():
        steer.finished(steer.sample(denoiser, (4, SIDE, SIDE), schedule, controllers, **options))
    return peak.megabytes()


def _words() -> dict[str, Tensor]:
    return {"words": torch.zeros(1, 1, 77, 768)}


def _stored(unet: Any) -> float:
    """MB of the content's queries and the style's keys and values at all steps, in float32."""
    total = 0

    def count(ask: Any, attend: Any) -> Tensor:
        nonlocal total
        total += sum(4 * part.numel() for part in (ask.query, ask.key, ask.value))
        return attend(ask)

    with torch.no_grad(), attending(unet, style.decoder(unet), count):
        _Denoiser(unet)(torch.zeros(1, 4, SIDE, SIDE), Level(1.0, 1.0), _words())
    return STEPS * total / 1e6


def _measured() -> dict[str, float | None]:
    unet = network()
    noise = torch.randn(3, 1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    reference = steer.Trajectory(noise, tuple(vp(2)), _words(), ("",))
    injected = style.style_id(unet, reference, reference)
    stored = _stored(unet)
    _peak(unet, [])  # what a first run allocates for good
    plain, styled = _peak(unet, []), _peak(unet, [injected])
    above = None if plain is None or styled is None else styled - plain
    return {"plain_mb": plain, "styleid_mb": styled, "above_mb": above, "budget_mb": BUDGET_MB, "stored_mb": stored}


def memory() -> dict[str, float | None]:
    """Peak of a plain run and of StyleID, MB; None where nobody keeps count. `stored_mb`: what stored features take."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured).result()
