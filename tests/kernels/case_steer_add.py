from __future__ import annotations

from collections.abc import Iterator

import torch
from kernel_cases import Case, Inputs, meta, poisoned
from steer_kernels import steer_add
from torch import Tensor


def inputs(dtype: torch.dtype) -> Iterator[tuple[str, Inputs]]:
    draw = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    mask = torch.rand(3, 5, generator=draw) < 0.6
    dial = torch.tensor([[0.3, -0.2], [0.0, 0.0], [1.0, 0.5]])
    states = make(3, 5, 70)
    states[1, mask[1]] = torch.inf  # strength 0 leaves it, where any arithmetic would make NaN of it
    yield "all", (states, make(3, 2, 70), dial, mask, True, True, torch.inf)
    yield "absolute", (make(3, 5, 70), make(2, 70), dial[2], mask[:1], False, True, torch.inf)
    yield "norms change", (make(2, 3, 33), make(1, 33), dial[:2, :1], None, True, False, torch.inf)
    yield "strided", (poisoned(make(3, 5, 7)), poisoned(make(2, 7)), dial, mask.T.contiguous().T, False, False, 1e9)
    states = make(1, 4, 20)
    states[0, 0] *= 100
    yield "sink and nothing", (states, torch.cat((make(1, 20), make(1, 20) * 0)), dial[2], None, True, True, 30.0)
    yield "cancelled", (make(1, 1, 8).repeat(1, 2, 1) * 0, make(1, 8), dial[2, :1], mask[:1, :1], True, True, torch.inf)
    yield "large", (make(1, 2, 300) * 2000, make(1, 300) * 300, dial[:1, :1], None, True, True, torch.inf)


def typical(dtype: torch.dtype) -> dict[str, Inputs]:
    sizes = {"SmolLM2, decoding": (16, 1, 576), "8B, decoding": (16, 1, 4096), "8B, prompt": (4, 1024, 4096)}
    return {
        name: (
            meta(*shape, dtype=dtype), meta(1, shape[2], dtype=dtype), meta(shape[0], 1),
            meta(shape[0], shape[1], dtype=torch.bool), True, True, 500.0,
        )
        for name, shape in sizes.items()
    }  # fmt: skip


CASE = Case(
    op=steer_add,
    inputs=inputs,
    terms=lambda hidden, *rest: 2 * hidden.shape[-1],
    dtypes=(torch.float16, torch.bfloat16, torch.float32),
    typical=typical,
    mutations=(
        ("row * vectors_r", "0 * vectors_r"),
        ("tl.load(mask + row * mask_r + token * mask_t)", "tl.load(mask + row * mask_r)"),
        ("tl.where(length > 0, length, 1.0)", "length"),
        ("strength * size /", "strength /"),
        ("moved *= size /", "moved *= 1 /"),
        ("chosen & (size <= limit) &", "chosen &"),
        ("(strongest > 0)", "(strongest < 9)"),
        ("cols.to(tl.int64) * hidden_d", "cols"),
    ),
)
