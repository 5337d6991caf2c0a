"""Kernels for attention, where there are some for what is asked."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor


def kernel(name: str, query: Tensor) -> Callable[..., Any] | None:
    """The op of steer_kernels of that name, if its kernels take such queries; None on a CPU, where Triton stays out."""
    if not query.is_cuda:
        return None
    module = import_module(f"steer_kernels.{name}")
    return getattr(module, name) if module.OP.serves(query) else None
