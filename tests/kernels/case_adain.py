from __future__ import annotations

from collections.abc import Iterator

import torch
from kernel_cases import Case, Inputs, meta, poisoned
from steer_kernels import adain
from torch import Tensor


def inputs(dtype: torch.dtype) -> Iterator[tuple[str, Inputs]]:
    draw = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    yield "ragged", (make(2, 3, 7, 19), make(2, 3, 5, 19) * 3 + 1, 0.3)
    yield "one number", (make(1, 1, 1, 1), make(1, 1, 1, 1), 1.0)
    yield "shared style", (make(2, 2, 33, 16), make(1, 1, 9, 16), 0.8)
    yield "long", (make(1, 1, 1030, 5), make(1, 1, 300, 5) - 2, 1.0)
    yield "strided", (poisoned(make(2, 2, 9, 18)), poisoned(make(2, 1, 6, 18)), 0.5)
    yield "heads last", (make(2, 11, 3, 8).transpose(1, 2), make(2, 3, 4, 8), 1.0)
    yield "far from zero", (make(1, 1, 300, 3) + 100, make(1, 1, 140, 3) / 8 - 50, 1.0)
    # no deviation, and means that are exact: rounding of a mean would count 1 / sqrt(1e-5) times
    yield "flat", (torch.tensor([1, -2, 0.5, 0]).to(dtype).repeat(1, 1, 6, 1), make(1, 1, 3, 4), 1.0)


def typical(dtype: torch.dtype) -> dict[str, Inputs]:
    sizes = {"SD1.5": (4, 8, 4096, 40), "SDXL": (4, 20, 1024, 64), "FLUX": (4, 24, 4608, 128)}
    return {name: (meta(*shape, dtype=dtype), meta(1, *shape[1:], dtype=dtype), 1.0) for name, shape in sizes.items()}


CASE = Case(
    op=adain,
    inputs=inputs,
    terms=lambda x, y, alpha: max(x.shape[2], y.shape[2]),
    dtypes=(torch.float16, torch.bfloat16, torch.float32),
    typical=typical,
    gradients=(0, 1),
    mutations=(
        ("tl.where(inside, tile - here[None, :], 0.0)", "tile - here[None, :]"),
        ("row * y_r + head * y_h", "head * y_h"),
        ("(1 - alpha) * (target - tile)", "(target - tile)"),
        ("+ shift * shift * start * share", ""),
        ("(tokens < T)[:, None]", "(tokens < T - 1)[:, None]"),
        ("tl.sqrt(square / T + EPS), goal", "square / T + EPS, goal"),
        ("unit * along) / x.shape[2]", "unit) / x.shape[2]"),
    ),
)
