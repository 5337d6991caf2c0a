"""The kernels beside their plain torch compositions: bytes and FLOPs counted from the code, and times on a GPU.

    python -m benchmarks.kernels --roofline    prints the counts and writes RESULTS/roofline.json; needs no GPU
    python -m benchmarks.kernels               checks and times on a GPU and writes RESULTS/kernels.json

Inputs have the sizes of the tests' cases (tests/kernels/case_*.py). A composition is the op's reference, but draws its
random numbers by torch's own generator. Without a GPU nothing is timed, and it says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from steer_kernels import resample, shared_attention, swap_attention, transition
from steer_kernels.launch import run, triton
from steer_kernels.traffic import torch_cost
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "kernels"))

from all_cases import CASES  # noqa: E402
from kernel_cases import Case, Inputs  # noqa: E402

QUANTILES = (0.5, 0.2, 0.8)
HALF = torch.float16


def stepped(x: Tensor, prediction: Tensor, unconditional: Tensor | None, noise: Tensor | None, *rest: Any) -> Tensor:
    return transition.reference(x, prediction, unconditional, torch.randn_like(x) if noise is None else noise, *rest)


def resampled(logw: Tensor, rule: str, k: int, uniforms: Tensor | None, *key: int) -> Tensor:
    groups, n = logw.shape
    shape = {"systematic": (groups, 1), "gumbel": (groups, n, n)}.get(rule)
    uniforms = None if shape is None else torch.rand(shape, device=logw.device)
    return resample.reference(logw, rule, k, uniforms, *key)


def words(particles: Tensor, count: int, *key: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, (len(particles), count), dtype=torch.int32, device=particles.device)


RANDOM = {"philox": words, "resample": resampled, "transition": stepped}
"""Compositions that draw: op -> function of its inputs."""


def by(fast: Callable[..., Any], module: ModuleType) -> Callable[..., Any]:
    """The composition with an attention of torch's in the inputs' dtype, which holds no probabilities either."""

    def attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads = (part.flatten(0, -4) for part in (query, key, value))  # it takes four axes
        return fast(*heads, scale=scale).view(*query.shape[:-1], value.shape[-1])

    def way(*inputs: Any) -> Any:
        with patch.multiple(module, attention=attention, wide=lambda x: x):
            return module.reference(*inputs)

    return way


FAST = {"sdpa": scaled_dot_product_attention, "flex": torch.compile(flex_attention, dynamic=False)}
RIVALS = {
    name: {way: by(fast, module) for way, fast in FAST.items()}
    for name, module in (("swap_attention", swap_attention), ("shared_attention", shared_attention))
}
"""Other ways to an op's outputs: op -> name -> function of its inputs."""


def sizes() -> Iterator[tuple[Case, str, Inputs]]:
    """Every op at every size, on the meta device; in half precision where the op has it."""
    for case in CASES:
        for size, inputs in case.typical(HALF if HALF in case.dtypes else case.dtypes[0]).items():
            yield case, size, inputs


def roofline() -> list[dict[str, Any]]:
    """Bytes through global memory and FLOPs, of the kernels and of the composition in eager torch.

    FLOPs of an op that does not count its own are the composition's: it does the same arithmetic in one pass.
    """
    lines = []
    for case, size, inputs in sizes():
        composed = torch_cost(RANDOM.get(case.name, case.op.reference), *inputs)
        moved = case.op.bytes_moved(*inputs)
        flops = getattr(case.op, "flops", lambda *_, composed=composed: composed.flops)(*inputs)
        kernel = {"bytes": moved, "flops": flops, "flops a byte": round(flops / moved, 2)}
        lines.append({"op": case.name, "size": size, "kernel": kernel, "torch": composed._asdict()})
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    rows = [f"{'op':<18}{'size':<20}{'MB':>10}{'torch MB':>12}{'GFLOP':>10}{'torch':>10}{'FLOP a byte':>13}"]
    for line in lines:
        mine, theirs = line["kernel"], line["torch"]
        rows.append(
            f"{line['op']:<18}{line['size']:<20}{mine['bytes'] / 1e6:>10.3f}{theirs['bytes'] / 1e6:>12.3f}"
            f"{mine['flops'] / 1e9:>10.4f}{theirs['flops'] / 1e9:>10.4f}{mine['flops a byte']:>13.2f}"
        )
    return "\n".join(rows)


def times() -> Iterator[dict[str, Any]]:
    """One row for each op and size: milliseconds at `QUANTILES` by each way.

    Before it is timed each agrees with the reference, but for compositions that draw other random numbers.
    """
    torch.manual_seed(0)
    for case, size, inputs in sizes():
        torch.compiler.reset()  # it counts how often one function was compiled, over all sizes, and gives up at some
        inputs = tree_map(real, inputs)
        composed = RANDOM.get(case.name, case.op.reference)
        ways = {"triton": lambda *given, op=case.op: run(op.plan(*given)), **RIVALS.get(case.name, {})}
        ways |= {"torch": composed, "compiled": torch.compile(composed)}
        milliseconds = {}
        for name, way in ways.items():
            own = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
            found = way(*own)
            if case.name not in RANDOM or name not in ("torch", "compiled"):
                case.verify(case.op, inputs, found, case.op.reference(*inputs))  # an op may have changed its own
            milliseconds[name] = triton.testing.do_bench(lambda way=way, own=own: way(*own), quantiles=QUANTILES)
        yield {"op": case.name, "size": size, "ms": milliseconds}


def real(leaf: Any) -> Any:
    """A tensor like one of the meta device, on the GPU: in [0, 1), or an index that is less than its last length."""
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.is_floating_point():
        return torch.rand(leaf.shape, device="cuda").to(leaf.dtype)
    most = 2 if leaf.dtype == torch.bool else leaf.shape[-1]
    return torch.randint(most, leaf.shape, device="cuda").to(leaf.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roofline", action="store_true", help="count bytes and FLOPs; nothing is run")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where the JSON goes")
    options = parser.parse_args()
    if options.roofline:
        lines = roofline()
        print(table(lines))
        (options.results / "roofline.json").write_text(json.dumps(lines, indent=1) + "\n")
        return
    if triton is None or not torch.cuda.is_available():
        print("no GPU: not run")
        return
    result = {
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "quantiles": QUANTILES,
        "rows": [],
    }
    for row in times():
        print(json.dumps(row))
        result["rows"].append(row)
    (options.results / "kernels.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
