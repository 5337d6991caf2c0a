from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch
from kernel_cases import Case, Inputs, meta
from steer_kernels import resample
from torch import Tensor


def inputs(dtype: torch.dtype) -> Iterator[tuple[str, Inputs]]:
    draw = torch.Generator().manual_seed(0)
    logw = 3 * torch.randn(5, 19, generator=draw)
    logw[0, ::2], logw[1], logw[2, 5:] = -torch.inf, -torch.inf, torch.nan
    logw[3, 4], logw[3, 9], logw[4, 7], logw[4, 9:12] = 1e4, 1e4, -1e30, logw[4, 3]
    strided = torch.randn(3, 40, generator=draw)[:, 1:35:2]
    start = torch.rand(5, 1, generator=draw, dtype=torch.float64)
    start[2] = 1 - 2.0**-53  # the last point is 1, which the cumulated weights may not reach
    every = torch.rand(5, 19, 19, generator=draw)
    every[0, 0] = 0
    key = (2**50 + 1, 6)
    for rule, uniforms in (("top_k", None), ("systematic", start), ("gumbel", every)):
        yield f"{rule} given" if uniforms is not None else rule, (logw, rule, 4, uniforms, 0, 0)
        yield f"{rule} keyed", (logw, rule, 19, None, *key)
        yield f"{rule} strided", (strided, rule, 17, None, *key)
        yield f"{rule} alone", (logw[:, :1], rule, 1, None, *key)
    yield "many", (torch.randn(1, 70, generator=draw), "systematic", 1, None, *key)


def check(op: ModuleType, inputs: Inputs, found: Tensor) -> None:
    logw, rule, _, uniforms, seed, step = inputs
    expected = resample.reference(*inputs)
    if rule != "gumbel":
        assert torch.equal(found, expected)
        return
    # the largest key, or one that rounding cannot tell from it: keys are within 100 of the largest weight
    if uniforms is None:
        uniforms = resample.drawn(*logw.shape, rule, seed, step, logw.device)
    weight = torch.where(logw.isnan(), -torch.inf, logw).double()[:, None]
    keys = weight - (-uniforms.double().clamp_min(resample.TINY).log()).log()
    scale = 100 + logw[logw.isfinite()].abs().clamp_max(1e4).max()
    lost = keys.amax(-1) - keys.gather(-1, found[..., None])[..., 0]
    assert (lost.nan_to_num(0) <= scale * 2.0**-23).all()
    assert torch.equal(found[keys.isneginf().all(-1)], expected[keys.isneginf().all(-1)])


def typical(dtype: torch.dtype) -> dict[str, Inputs]:
    return {rule: (meta(64, 1024), rule, 4, None, 2**62, 10) for rule in resample.RULES}


CASE = Case(
    op=resample,
    inputs=inputs,
    terms=lambda *inputs: 1,
    dtypes=(torch.float32,),
    typical=typical,
    check=check,
    mutations=(
        ("(i[:, None] < j[None, :])", "(i[:, None] > j[None, :])"),  # ties to the higher number
        ('tl.where(weight == weight, weight, float("-inf"))', "tl.where(weight == weight, weight, 9.0)"),
        ("(s % alive)", "(s % k)"),
        ("reached[None, :] <= point", "reached[None, :] < 0.5 * point"),
        ("tl.minimum(index, last)", "index"),
        ("keys = weight[None, :] - tl.log(", "keys = weight[None, :] + tl.log("),
        ("cell = s[:, None] * n + j", "cell = s[:, None] + j"),
        ("tl.where(j == 0, 0.0", "tl.where(j == n - 1, 0.0"),
    ),
)
