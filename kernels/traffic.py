"""Bytes that a plain-torch composition moves: what a fused kernel is compared with, counted and not guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
FREE = {aten.detach.default, aten.empty.memory_format, aten.arange.default}
SPARSE = {aten.index.Tensor, aten.gather.default, aten.index_select.default}  # these read only what they return


def size(tensor: Tensor) -> int:
    """Bytes of memory behind a tensor: expanded dimensions (stride 0) count once."""
    lengths = [length for length, stride in zip(tensor.shape, tensor.stride()) if stride != 0]
    return tensor.element_size() * int(torch.tensor(lengths).prod())


class Traffic(TorchDispatchMode):
    """Adds up, over every torch operation that is no view, the bytes of its tensor inputs and outputs.

    This is what eager torch moves through global memory if nothing stays in cache between two operations.
    """

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in FREE or func.is_view:
            return out
        written = sum(size(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        read = written + sum(map(size, inputs[1:])) if func in SPARSE else sum(map(size, inputs))
        self.bytes += written + read
        return out


def torch_bytes(function: Callable[..., Any], *inputs: Tensor) -> int:
    """Bytes that `function(*inputs)` moves in eager torch; with meta tensors nothing is computed."""
    with Traffic() as traffic:
        function(*inputs)
    return traffic.bytes
