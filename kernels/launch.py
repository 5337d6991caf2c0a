"""What every op shares: Triton where there is one, and a kernel launch as a value.

An op is a module with

    reference(*inputs)         the formula in plain torch, on any device
    plan(*inputs)              -> (outputs, launches): allocates the outputs, names the Triton kernels that fill them
    <op>(*inputs)              the public op: checks its inputs, then `dispatch`
    bytes_moved(*inputs)       bytes that the planned kernels read and write in global memory

so that parity, ahead-of-time compilation, byte counts and timings are written once, for all ops.
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


def jit(function: Callable) -> Any:
    """`triton.jit`, or the bare function where there is no Triton."""
    return function if triton is None else triton.jit(function)


class Launch(NamedTuple):
    """One kernel launch: `args` are its run-time arguments, `meta` its compile-time constants."""

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    meta: dict[str, float]
    warps: int = 4

    def run(self) -> None:
        device = next(value for value in self.args.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(device):  # Triton launches on the current device, whatever its arguments say
            self.kernel[self.grid](**self.args, **self.meta, num_warps=self.warps)


def run(plan: tuple[Outputs, list[Launch]]) -> Outputs:
    """Run the launches of a plan in order and return its outputs."""
    outputs, launches = plan
    for launch in launches:
        launch.run()
    return outputs


def dispatch(reference: Callable[..., Outputs], plan: Callable[..., Any], *inputs: Tensor) -> Outputs:
    """Triton kernels for tensors on a GPU, the reference everywhere else."""
    return run(plan(*inputs)) if triton is not None and inputs[0].is_cuda else reference(*inputs)


def blocks(length: int, block: int) -> int:
    """How many blocks cover `length`: ceil(length / block), at least one."""
    return max(1, -(-length // block))


def power_of_two(length: int, most: int) -> int:
    """The smallest power of two >= length, at most `most`: Triton's block sizes."""
    return min(most, 1 << max(0, length - 1).bit_length())
