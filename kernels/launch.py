"""What every op shares: Triton where there is one, and a kernel launch as a value.

An op is a module with

    reference(*inputs)       the formula in plain torch on any device, in float32 at least and in float64 for float64
    plan(*inputs)            -> (outputs, launches): allocates the outputs, names the Triton kernels that fill them
    OP = Operator(...)       both as one op that torch knows, see `operator`
    <module>(...)            the public op: checks its inputs, then calls OP
    bytes_moved(*inputs)     bytes that the planned kernels read and write in global memory
    flops(*inputs)           floating-point operations of the planned kernels, where they are worth a count

so that parity, ahead-of-time compilation, byte counts, registration and timings are written once, for all ops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU-only and non-Linux torch come without Triton: the reference serves there
    triton = tl = None

Outputs = TypeVar("Outputs")
INTERPRETED = triton is not None and triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: kernels run on the CPU


def jit(function: Callable) -> Any:
    """`triton.jit`, or the bare function where there is no Triton."""
    return function if triton is None else triton.jit(function)


class Launch(NamedTuple):
    """One kernel launch: `args` are its run-time arguments, `meta` its compile-time constants."""

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    meta: dict[str, Any]
    warps: int = 4
    stages: int = 3

    def run(self) -> None:
        device = next(value for value in self.args.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(device):  # Triton launches on the current device, whatever its arguments say
            self.kernel[self.grid](**self.args, **self.meta, num_warps=self.warps, num_stages=self.stages)


def run(plan: tuple[Outputs, list[Launch]]) -> Outputs:
    """Run the launches of a plan in order and return its outputs."""
    outputs, launches = plan
    for launch in launches:
        launch.run()
    return outputs


def blocks(length: int, block: int) -> int:
    """How many blocks cover `length`: ceil(length / block), at least one."""
    return torch.sym_max(1, -(-length // block))  # pyright: ignore[reportReturnType] — symbolic for symbolic lengths


def power_of_two(length: int, most: int) -> int:
    """The smallest power of two >= length, at most `most`: Triton's block sizes.

    `most` for a symbolic length, which only the plan of a fake implementation has, and that one never runs.
    """
    return min(most, 1 << max(0, length - 1).bit_length()) if isinstance(length, int) else most


def wide(tensor: Tensor) -> Tensor:
    """In float32, or in float64 for such a tensor: what references compute in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
