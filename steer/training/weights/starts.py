"""Starts for LoRA that need a pass over data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from steer.training.handle import Handle, Weights, adapted
from steer.training.method import Parametrise
from steer.training.weights.attach import lora
from steer.training.weights.collect import batches, collect, covariance
from steer.training.weights.task import Learnable, targeted


def corda(method: str, rank: int, alpha: float, targets: Sequence[str], examples: int, seed: int) -> Parametrise:
    """LoRA that takes a part of W0: the main ("ipm") or least ("kpm") directions under the covariance of its inputs.

    SVD(W C) = U S V^T and B A is made of r triples of U S (V^T C^-1); the rest is frozen. arXiv 2406.05223.
    """

    def parametrise(task: Learnable) -> Handle:
        from peft import LoraConfig
        from peft.tuners.lora.config import CordaConfig
        from peft.tuners.lora.corda import preprocess_corda

        layers = targeted(task.model, targets)
        if (least := min(min(layer.weight.shape) for layer in layers.values())) < rank:
            raise ValueError(f"rank {rank}, and a layer has {least} singular values: expected at most that.")
        whole = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        with TemporaryDirectory() as folder:
            path = str(Path(folder, "covariance.pt"))
            torch.save(covariance(task.model, task.loss, batches(task, examples, 1, seed), layers), path)
            settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": list(layers)}
            given = CordaConfig(corda_method=method, covariance_file=path)
            config = LoraConfig(init_lora_weights="corda", corda_config=given, **settings)
            preprocess_corda(task.model, config)
            handle = adapted(task.model, config)
        return restoring(handle, layers, whole)

    return parametrise


def lora_one(
    rank: int, alpha: float, targets: Sequence[str], gamma: float, examples: int, size: int, seed: int
) -> Parametrise:
    """LoRA that starts one damped step down the full gradient: B A = U_r S_r V_r^T / (gamma S_0) of U S V^T = -G.

    With rslora's scaling; the base is not corrected, so the start is not the base. arXiv 2502.01235.
    """

    def parametrise(task: Learnable) -> Handle:
        weights = {name: layer.weight for name, layer in targeted(task.model, targets).items()}
        data = batches(task, examples, size, seed)
        gradients = collect(task.model, task.loss, data, weights)["gradient"]
        handle = lora(rank, alpha, targets, rslora=True)(task)
        for name, gradient in gradients.items():
            layer: Any = task.model.get_submodule(name)
            b, a = halves(-gradient, rank, gamma)
            layer.lora_A["default"].weight.data.copy_(a)
            layer.lora_B["default"].weight.data.copy_(b)
        handle.start = handle.weights()
        return handle

    return parametrise


def halves(matrix: Tensor, rank: int, gamma: float) -> tuple[Tensor, Tensor]:
    """B (out, r) and A (r, in), with B A = U_r S_r V_r^T / (gamma S_0) of the matrix's SVD.

    Raises ValueError for a matrix of zeros, a layer that the calibration loss does not reach, and for one of fewer
    singular values.
    """
    if rank > min(matrix.shape):
        raise ValueError(f"rank {rank} of a layer {tuple(matrix.shape)}: expected at most {min(matrix.shape)}.")
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    if not s[0] > 0:
        raise ValueError(f"a gradient {tuple(matrix.shape)} of zeros gives no direction: leave that layer out.")
    root = (s[:rank] / s[0] / gamma).sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]


def restoring(handle: Handle, layers: Mapping[str, nn.Linear], whole: Weights) -> Handle:
    """A handle that on detaching also writes these weights back, where attaching had changed them."""
    leave = handle.detached

    def detached() -> None:
        leave()
        for name, layer in layers.items():
            layer.weight.data.copy_(whole[name])

    handle.detached = detached
    return handle
