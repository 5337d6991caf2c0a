"""What the attention ops share outside of kernels: the formula in plain torch, and checks of their inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST = 256  # channels of a head that a program holds
MOST = 65535  # programs along the second and third axis of a grid, CUDA C guide table 30


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale query key^T) value, (..., tokens, d)."""
    return (scale * query @ key.mT).softmax(-1) @ value


def affine(x: Tensor, pairs: Tensor | None) -> Tensor:
    """a x + b for x (..., tokens, d) and pairs (..., 2, d) of a and b; None: x."""
    return x if pairs is None else pairs[..., :1, :].to(x) * x + pairs[..., 1:, :].to(x)


def fits(query: Tensor, *others: object) -> bool:
    """Whether kernels take such heads: of at most 256 channels, and not too many."""
    *rows, heads, _, d = query.shape
    return query.dtype in DTYPES and d <= WIDEST and heads <= MOST and math.prod(rows) <= MOST


def check(op: str, same: tuple[str, ...], **expected: tuple[Tensor | None, str]) -> None:
    """Raises ValueError unless the tensors have the axes that are named beside them, none empty and lengths by name.

    same  names of the tensors that have one dtype, of `DTYPES`. All are on one device. None stands for no tensor
    """
    given = {name: (x, axes) for name, (x, axes) in expected.items() if x is not None}
    lengths = {"2": 2}
    for name, (x, axes) in given.items():
        named = list(zip(axes.split(), x.shape))
        if x.ndim != len(axes.split()) or any(n == 0 or lengths.setdefault(axis, n) != n for axis, n in named):
            raise ValueError(f"{op}: {name} is {tuple(x.shape)}; expected ({axes}), none empty, where {lengths}.")
    dtypes = {given[name][0].dtype for name in same if name in given}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise ValueError(
            f"{op}: {', '.join(same)} are {sorted(map(str, dtypes))}; expected one of float16, bfloat16 and float32."
        )
    devices = {str(x.device) for x, _ in given.values()}
    if len(devices) > 1:
        raise ValueError(f"{op}: tensors on {sorted(devices)}; move them to one device first.")
