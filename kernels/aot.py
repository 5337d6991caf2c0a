"""Compile a planned launch for a GPU that is not here, and read what the assembler says about it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from steer_kernels.launch import INTERPRETED, Launch, triton
from torch import Tensor

TARGETS = (80, 90, 100)  # A100, H100 / H200, B200
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes one block may use, CUDA C guide table 30
POINTERS = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64",
    torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8", torch.bool: "*i1",
}  # fmt: skip
MATRIX = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")  # tensor cores of sm_80, sm_90, sm_100


class Resources(NamedTuple):
    """What one kernel takes on one target: registers a thread, spilled bytes, shared memory bytes a block.

    `tensor_cores`: whether it multiplies matrices there.
    """

    kernel: str
    target: int
    registers: int
    spilled: int
    shared: int
    tensor_cores: bool


def resources(launch: Launch, target: int) -> Resources:
    """Compile `launch` for compute capability `target` (80 = sm_80) and return its resources; needs no GPU.

    The arguments are specialised as Triton's launcher would: 1 is a constant, multiples of 16 are declared so.
    Raises RuntimeError under TRITON_INTERPRET=1, where Triton has no compiler.
    """
    if triton is None or INTERPRETED:
        raise RuntimeError("ahead-of-time compilation needs Triton, imported without TRITON_INTERPRET=1.")
    signature, constants, attributes = _specialised(launch)
    source = triton.compiler.ASTSource(launch.kernel, signature, constants, attributes)
    gpu = triton.backends.compiler.GPUTarget("cuda", target, 32)
    compiled = triton.compile(source, target=gpu, options={"num_warps": launch.warps, "num_stages": launch.stages})
    ptx, name = compiled.asm["ptx"], launch.kernel.fn.__name__.strip("_")
    return Resources(name, target, *_assemble(ptx, target), compiled.metadata.shared, bool(MATRIX.search(ptx)))


def _specialised(launch: Launch) -> tuple[dict[str, Any], dict[tuple[int, ...], Any], dict[tuple[int, ...], list]]:
    """Types by name; constants and attributes by the argument's place, and the place in it if it is a tuple."""
    constants, attributes = {}, {}

    def of(value: Any, *place: int) -> Any:
        if isinstance(value, tuple):
            return tuple(of(part, *place, k) for k, part in enumerate(value))
        whole = type(value) is int
        if launch.kernel.arg_names[place[0]] in launch.meta or value is None or (whole and value == 1):
            constants[place] = value
            return "constexpr"
        if isinstance(value, Tensor) or (whole and value % 16 == 0):
            attributes[place] = [["tt.divisibility", 16]]
        return _type(value)

    every = {**launch.args, **launch.meta}
    signature = {name: of(every[name], k) for k, name in enumerate(launch.kernel.arg_names)}
    return signature, constants, attributes


def _type(value: Tensor | float) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, bool):
        return "u1"
    return "fp32" if isinstance(value, float) else "i32" if abs(value) < 2**31 else "i64"


def _assemble(ptx: str, target: int) -> tuple[int, int]:
    """Registers and spilled bytes by `ptxas -v`: a cubin does not record its spills and Triton drops the log."""
    tool = triton.knobs.nvidia.ptxas_blackwell if target >= 100 else triton.knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        name = re.search(r"\.target (\w+)", ptx)[1]
        command = [tool.path, "-v", f"--gpu-name={name}", str(path), "-o", str(path.with_suffix(".cubin"))]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    return int(re.search(r"Used (\d+) registers", log)[1]), sum(map(int, spills))
