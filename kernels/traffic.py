"""What a plain-torch composition costs: what a fused kernel is compared with, counted and not guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
FREE = {aten.detach.default, aten.empty.memory_format, aten.arange.default}
SPARSE = {aten.index.Tensor, aten.gather.default, aten.index_select.default}  # these read only what they return
MOVES = {aten._to_copy, aten.clone, aten.copy_, aten.cat, aten.where, *(func.overloadpacket for func in SPARSE)}


class Cost(NamedTuple):
    """Bytes that go through global memory, and floating-point operations."""

    bytes: int
    flops: int


def size(tensor: Tensor) -> int:
    """Bytes of memory behind a tensor: expanded dimensions (stride 0) count once."""
    lengths = [length for length, stride in zip(tensor.shape, tensor.stride()) if stride != 0]
    return tensor.element_size() * int(torch.tensor(lengths).prod())


class Traffic(TorchDispatchMode):
    """Adds up, over every torch operation that is no view, the bytes of its tensor inputs and outputs, and its flops.

    The bytes are what eager torch moves through global memory if nothing stays in cache between two operations. Flops
    are those of matrix products, as torch counts them, and one for each number of the largest floating-point tensor
    that any other operation reads or writes, if it does more than move numbers.
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in FREE or func.is_view:
            return out
        outputs, inputs = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)] for tree in (out, (args, kwargs))
        )
        written = sum(map(size, outputs))
        read = written + sum(map(size, inputs[1:])) if func in SPARSE else sum(map(size, inputs))
        self.bytes += written + read
        packet = func.overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        elif packet not in MOVES:
            self.flops += max((x.numel() for x in (*inputs, *outputs) if x.is_floating_point()), default=0)
        return out


def torch_cost(function: Callable[..., Any], *inputs: Any) -> Cost:
    """What `function(*inputs)` costs in eager torch; with meta tensors nothing is computed."""
    with Traffic() as traffic:
        function(*inputs)
    return Cost(traffic.bytes, traffic.flops)
