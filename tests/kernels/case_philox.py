from __future__ import annotations

from collections.abc import Iterator

import torch
from kernel_cases import Case, Inputs, meta
from steer_kernels import philox


def inputs(dtype: torch.dtype) -> Iterator[tuple[str, Inputs]]:
    yield "one word", (torch.tensor([0]), 1, 0, 0, 0)
    yield "ragged", (torch.tensor([3, 0, 2**32 - 1]), 1031, 2**63 - 25, 2**31 - 1, 1)
    yield "strided", (torch.arange(8)[::3], 6, 1, 1, 7)


def typical(dtype: torch.dtype) -> dict[str, Inputs]:
    sizes = {"SD1.5": 4 * 64 * 64, "SDXL": 4 * 128 * 128, "FLUX": 4096 * 64}
    return {name: (meta(64, dtype=torch.int64), count, 2**62, 10, 0) for name, count in sizes.items()}


CASE = Case(
    op=philox,
    inputs=inputs,
    terms=lambda *inputs: 1,  # integers: equal bit for bit
    dtypes=(torch.float32,),
    typical=typical,
    mutations=(
        ("tl.interleave(w0, w2), tl.interleave(w1, w3)", "tl.interleave(w0, w1), tl.interleave(w2, w3)"),
        ("tl.load(particles + row)", "row"),
        ("particle.to(tl.uint32), step, stream)", "particle.to(tl.uint32), stream, step)"),
        ("tl.program_id(1) * QUADS", "tl.program_id(0) * QUADS"),
    ),
)
