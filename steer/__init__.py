"""steer: make diffusion models, LLMs and VLMs do what you want, at inference time."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from steer import rewards
from steer.diffusion import attention
from steer.diffusion.control import Controller, chain, during
from steer.diffusion.controllers import (
    Search,
    beam,
    best_of_n,
    code,
    fk,
    funnel,
    halving,
    noise_search,
    paths,
    rollover,
    smc,
    svdd,
)
from steer.diffusion.loop import finished, sample
from steer.diffusion.pipelines import Steered, attach, denoiser_of, invert, reconstruct, record
from steer.diffusion.state import Level, State
from steer.diffusion.trajectory import Trajectory
from steer.zoo import load

if TYPE_CHECKING:
    from steer import language, training, transfer
    from steer.diffusion.controllers import compose, edit, gradients, guidance, style

LATER = {name: f"steer.{name}" for name in ("language", "training", "transfer")}
LATER |= {name: f"steer.diffusion.controllers.{name}" for name in ("compose", "edit", "gradients", "guidance", "style")}
"""Imported when they are first named: few programs need all of them."""

try:
    __version__ = version("steer")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Controller",
    "Level",
    "Search",
    "State",
    "Steered",
    "Trajectory",
    "attach",
    "attention",
    "beam",
    "best_of_n",
    "chain",
    "code",
    "compose",
    "denoiser_of",
    "during",
    "edit",
    "finished",
    "fk",
    "funnel",
    "gradients",
    "guidance",
    "halving",
    "invert",
    "language",
    "load",
    "noise_search",
    "paths",
    "reconstruct",
    "record",
    "rewards",
    "rollover",
    "sample",
    "smc",
    "style",
    "svdd",
    "training",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name in LATER:
        return import_module(LATER[name])
    raise AttributeError(f"module 'steer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})
