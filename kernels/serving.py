"""The one question before an op is taken from here; importing this imports no Triton."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor


def kernel(name: str, *inputs: Tensor) -> Callable[..., Any] | None:
    """The op of that name, if its kernels take inputs that begin so; None on a CPU, where Triton stays out."""
    if not inputs[0].is_cuda:
        return None
    module = import_module(f"steer_kernels.{name}")
    return getattr(module, name) if module.OP.serves(*inputs) else None
