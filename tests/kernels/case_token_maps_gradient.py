"""token_maps_gradient: each gradient to a bound that follows from those of p and dp."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import case_token_maps
import torch
from attention_cases import DTYPES, Draw, attention_error, product
from kernel_cases import Case, Inputs, exact, meta, poisoned
from steer_kernels import flash, token_maps, token_maps_gradient
from torch import Tensor


def inputs(dtype: torch.dtype) -> Iterator[tuple[str, Inputs]]:
    draw = Draw(dtype)
    every = [*case_token_maps.inputs(dtype), ("extreme", case_token_maps.extremes(dtype))]
    for name, (query, key, value, tokens, scale) in every:
        output, maps, *state = token_maps.reference(*exact((query, key, value, tokens, scale)))
        given = [draw(*output.shape), draw(*maps.shape).float(), query, key, value, output.to(dtype)]
        given = [*given, *(x.float() for x in state)]
        yield name, (*(map(poisoned, given[:6]) if name == "everything" else given[:6]), *given[6:], tokens, scale)


def check(op: ModuleType, inputs: Inputs, found: tuple[Tensor, ...]) -> None:
    """|dp| <= M everywhere, so that ds errs by M (2 error of p + 4 u), and a sum over T queries by as often as much."""
    g_output, g_maps, query, key, value, *_, scale = exact(inputs)
    d, keys, dtype = query.shape[-1], key.shape[-2], inputs[2].dtype
    longest = float(g_output.norm(dim=-1).max())
    most = longest * float(value.norm(dim=-1).max()) + float(g_maps.abs().max()) / query.shape[1]
    # tf32 has the digits of float16, whose gradients are multiplied in it
    error = attention_error(scale * product(query, key), d, keys + query.shape[-2], dtype, False)
    error = 2 * error + 4 * torch.finfo(dtype).eps / 2
    bounds = (
        scale * most * error * float(key.abs().max()),
        scale * most * error * float(query.abs().max()) * query.shape[-2],
        error * float(g_output.abs().max()) * query.shape[-2],
    )
    for have, want, bound in zip(found, token_maps_gradient.reference(*exact(inputs)), bounds, strict=True):
        torch.testing.assert_close(have.double(), want, atol=bound, rtol=0)


def typical(dtype: torch.dtype) -> dict[str, Inputs]:
    found = {}
    for name, (query, key, value, tokens, scale) in case_token_maps.typical(dtype).items():
        n, heads, length, _ = query.shape
        given = (query, meta(n, length, len(tokens)), query, key, value, query)
        found[name] = (*given, meta(n, heads, length), meta(n, heads, length), tokens, scale)
    return found


CASE = Case(
    op=token_maps_gradient,
    inputs=inputs,
    terms=lambda g_output, g_maps, query, key, *others: query.shape[-1] + query.shape[-2] + key.shape[-2],
    dtypes=DTYPES,
    check=check,
    typical=typical,
    tensor_cores=True,
    parts=(flash,),
    mutations=(
        ("delta += tl.sum(part, 1)", "delta += 0"),  # the maps' part of it
        ("acc = dot(part, k, acc)", "acc += 0"),
        ("acc = dot(p * (dp - delta[:, None]), k, acc)", "acc = dot(p * dp, k, acc)"),
        ("slot[None, :] * g_maps_s[2]", "0 * slot[None, :]"),  # the first word's, for each
        ("dp = dot(g, tl.trans(v), seen)", "dp = dot(g, tl.trans(v), tl.zeros_like(seen))"),
        ("rows = start + tl.arange(0, QUERIES)", "rows = tl.arange(0, QUERIES)"),  # the first queries' state
        ("if VALUE:", "if not VALUE:"),
        ("p = shares(q, k, peak, total, scale)", "p = shares(q, k, peak, total, natural)"),
    ),
)
