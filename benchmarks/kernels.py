"""Time every op of steer_kernels on a GPU against its plain torch composition and torch.compile of it.

    python benchmarks/kernels.py --out kernels.json

Each row is checked against the reference before it is timed. Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from steer_kernels import score_select
from steer_kernels.launch import triton
from steer_kernels.traffic import torch_bytes
from torch import Tensor

# op -> shapes of its inputs; for score_select embeddings, texts and latents of SD 1.5, of SDXL, of many small groups
SIZES = {
    score_select: [
        ((4, 16, 768), (4, 768), (4, 16, 4, 64, 64)),
        ((1, 64, 1280), (1, 1280), (1, 64, 4, 128, 128)),
        ((64, 8, 512), (64, 512), (64, 8, 4, 16, 16)),
    ],
}
QUANTILES = (0.5, 0.2, 0.8)


def rows() -> Iterator[dict]:
    """One row for each op, size and dtype: milliseconds (median, 20 % and 80 % quantiles) and bytes by each way."""
    generator = torch.Generator("cuda").manual_seed(0)
    for module, sizes in SIZES.items():
        op = getattr(module, module.__name__.rpartition(".")[2])
        for shapes in sizes:
            for dtype in (torch.float16, torch.float32):
                inputs = [torch.randn(shape, generator=generator, device="cuda").to(dtype) for shape in shapes]
                ways = {"triton": op, "torch": module.reference, "compiled": torch.compile(module.reference)}
                checked(ways, inputs)
                yield {
                    "op": op.__name__,
                    "shapes": shapes,
                    "dtype": str(dtype),
                    "ms": {name: timed(way, inputs) for name, way in ways.items()},
                    "bytes": {"triton": module.bytes_moved(*inputs), "torch": torch_bytes(module.reference, *inputs)},
                }


def checked(ways: dict[str, Callable], inputs: list[Tensor]) -> None:
    """All ways agree; random inputs have no near-ties, so integers and copies must be equal. Raises AssertionError."""
    expected = ways["torch"](*inputs)
    for way in ways.values():
        for found, wanted in zip(way(*inputs), expected):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def timed(way: Callable, inputs: list[Tensor]) -> Any:
    """Milliseconds at each of `QUANTILES`."""
    return triton.testing.do_bench(lambda: way(*inputs), quantiles=QUANTILES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file")
    options = parser.parse_args()
    if triton is None or not torch.cuda.is_available():
        print("no GPU: not run")
        return
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    result = {"device": torch.cuda.get_device_name(), "versions": versions, "quantiles": QUANTILES, "rows": []}
    for row in rows():
        print(json.dumps(row))
        result["rows"].append(row)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
