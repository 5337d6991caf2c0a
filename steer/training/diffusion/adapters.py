"""What of a pipeline is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from steer.training.diffusion.task import DiffusionTask
from steer.training.handle import Handle, own
from steer.training.method import Parametrise
from steer.training.weights import attach

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The projections of attention of diffusers' networks, UNets and transformers."""
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Those of CLIP's text encoder."""


def lora(rank: int = 8, where: Literal["network", "text"] = "network", seed: int = 0) -> Parametrise:
    """LoRA with alpha = rank on the attention of the denoising network, or of the text encoder.

    Raises ValueError for a pipeline without a text encoder that is called so.
    """

    def parametrise(task: DiffusionTask) -> Handle:
        if where == "text" and task.text is None:
            raise ValueError("this method trains the text encoder, and the pipeline has none called text_encoder.")
        ours = task if where == "network" else replace(task, model=task.text)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return attach.lora(rank, rank, ATTENTION if where == "network" else TEXT)(ours)

    return parametrise


def oft(block: int = 8, constraint: float | None = None) -> Parametrise:
    """Orthogonal rotations of what goes into attention, see `attach.rotated`; with a constraint COFT."""
    return attach.rotated(block, ATTENTION, constraint)


def whole() -> Parametrise:
    """All weights of the denoising network."""
    return lambda task: own(task.model)
