"""What a row of the kernels' tests says: the inputs on which a kernel must agree with its reference, and how closely.

A new op adds a file case_<op>.py with one `CASE`; parity, gradient, mutation, ahead-of-time, registration and
byte-count tests then run on it (`all_cases`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Inputs = tuple[Any, ...]  # tensors, numbers, None, and sequences of them: what the op's `plan` takes


@dataclass(frozen=True)
class Case:
    """One op.

    op            its module
    inputs        dtype -> named inputs: ragged sizes, odd strides, extreme values, everything that its plan branches on
    terms         inputs -> how many products the longest sum of an output has: see `tolerance`
    dtypes        what `inputs` and `typical` are made for
    mutations     (text of the kernel, its broken replacement), all memory-safe: each must be noticed in float32
    parts         modules that hold its kernels, or part of them, beside `op`; each may import those before it
    typical       dtype -> inputs of real uses by name ("SD1.5", "SDXL", "FLUX"), on the meta device
    check         (op, inputs, found): raises AssertionError where the kernels' outputs are wrong, if more than the
                  agreement with `op.reference` of the inputs in float64 is to be said
    gradients     which inputs the kernels take gradients for
    roundings     how often a gradient, and what it is made of, is rounded to the dtype
    tensor_cores  whether the first kernel of a plan must multiply matrices on tensor cores, in half precision
    """

    op: ModuleType
    inputs: Callable[[torch.dtype], Iterator[tuple[str, Inputs]]]
    terms: Callable[..., int]
    dtypes: tuple[torch.dtype, ...]
    mutations: tuple[tuple[str, str], ...]
    typical: Callable[[torch.dtype], dict[str, Inputs]]
    check: Callable[[ModuleType, Inputs, Any], None] | None = None
    gradients: tuple[int, ...] = ()
    roundings: int = 1
    tensor_cores: bool = False
    parts: tuple[ModuleType, ...] = ()

    @property
    def name(self) -> str:
        return self.op.__name__.rpartition(".")[2]

    def verify(self, op: ModuleType, inputs: Inputs, found: Any, expected: Any) -> None:
        """Raises AssertionError where the outputs `found` of `op`, or of a broken copy of it, are wrong."""
        if self.check is None:
            agree(found, expected, self.terms(*inputs))
        else:
            self.check(op, inputs, found)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def tolerance(terms: int, output: torch.dtype, roundings: int = 1) -> float:
    """How far two correct results of a normalised sum of `terms` products may be apart.

    Kernel and reference read the same numbers, whatever their dtype; the kernel accumulates in float32 (unit roundoff
    2^-24). Any order of summation errs by at most `terms` 2^-24 relative to the norms; a dot, two half-weight norms and
    what is done with them make 4; the result, and for `roundings` > 1 what it is made of, is rounded to its own dtype.
    """
    return 4 * terms * 2.0**-24 + roundings * torch.finfo(output).eps


def exact(inputs: Any) -> Any:
    """The same inputs with every floating-point tensor in float64: what a reference is given."""

    def wide(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(wide, inputs)


def agree(found: Any, expected: Any, terms: int, scale: float | None = None, roundings: int = 1) -> None:
    """Every tensor of `found` equals that of `expected`, floats within `tolerance(terms, its dtype)` times `scale`.

    scale  the largest magnitude in the expected tensor unless given. Infinities and NaN must be in the same places.
    """
    for have, want in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert have.shape == want.shape, f"shape {tuple(have.shape)}, expected {tuple(want.shape)}"
        if not have.is_floating_point():
            assert torch.equal(have, want), f"{have} is not {want}"
            continue
        finite = want[want.isfinite()]
        size = scale if scale is not None else float(finite.abs().max()) if finite.numel() else 0.0
        atol = size * tolerance(terms, have.dtype, roundings)
        torch.testing.assert_close(have.double(), want.double(), atol=atol, rtol=0, equal_nan=True)


def gradients(op: Callable[..., Any], inputs: Inputs, wanted: tuple[int, ...]) -> list[Tensor]:
    """Gradients with regard to the `wanted` inputs of <outputs, w>, where w are fixed normal numbers."""
    leaves = [tensor.detach().requires_grad_() if k in wanted else tensor for k, tensor in enumerate(inputs)]
    outputs = [leaf for leaf in tree_leaves(op(*leaves)) if leaf.requires_grad]
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=draw).to(torch.float16).to(out) for out in outputs]
    return list(torch.autograd.grad(outputs, [leaves[k] for k in wanted], weights))


def poisoned(x: Tensor) -> Tensor:
    """The same numbers with odd strides, inside a larger buffer full of NaN: a read outside the tensor shows."""
    buffer = x.new_full([length + 3 for length in reversed(x.shape)], torch.nan).permute(*reversed(range(x.dim())))
    view = buffer[tuple(slice(1, length + 1) for length in x.shape)]
    return view.copy_(x)
