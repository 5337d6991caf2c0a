"""token_maps: attention, and how much of it every query pays to chosen keys, without the map of all keys.

    p = softmax(s q k^T),   output = p v,   maps[i, c] = mean over heads of p[i, tokens[c]]

(where Attend-and-Excite, arXiv 2301.13826, and its kin read a picture's words). The output's pass keeps the peak and
the total of each query's softmax; a second one computes the chosen columns from them. Gradients flow from both results:

    dp = g_output v^T + g_maps / heads in chosen columns,   ds = p (dp - sum_j p dp)
    g_q = s ds k,   g_k = s ds^T q,   g_v = p^T g_output
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from steer_kernels import token_maps_gradient
from steer_kernels.flash import LOG2E, dot, fold, head, nothing, sizes, tile
from steer_kernels.heads import check, fits
from steer_kernels.launch import Launch, blocks, jit, tl, wide
from steer_kernels.operator import Operator
from steer_kernels.traffic import size
from torch import Tensor


class Attended(NamedTuple):
    """output (rows, heads, queries, d) in the queries' dtype, maps (rows, queries, tokens) float32."""

    output: Tensor
    maps: Tensor


def token_maps(
    query: Tensor, key: Tensor, value: Tensor, tokens: Sequence[int], scale: float | None = None
) -> Attended:
    """Attention and the mean over heads of its probabilities at chosen keys.

    query       (rows, heads, queries, d) float16, bfloat16 or float32
    key, value  (rows, heads, keys, d), same dtype
    tokens      different positions among the keys
    scale       s > 0; None: 1 / sqrt(d)

    Any strides. Differentiable by query, key and value. Raises ValueError for other shapes and numbers, mixed dtypes,
    and tensors on different devices.
    """
    check(
        "token_maps",
        ("query", "key", "value"),
        query=(query, "rows heads queries d"),
        key=(key, "rows heads keys d"),
        value=(value, "rows heads keys d"),
    )
    tokens, keys, scale = list(tokens), key.shape[-2], 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if not (scale > 0 and tokens and len(set(tokens)) == len(tokens) and 0 <= min(tokens) <= max(tokens) < keys):
        raise ValueError(
            f"token_maps(tokens={tokens}, scale={scale}): expected different ones of {keys} keys, and scale > 0."
        )
    return Attended(*OP(query, key, value, tokens, scale)[:2])


def reference(query: Tensor, key: Tensor, value: Tensor, tokens: list[int], scale: float) -> tuple[Tensor, ...]:
    """Output, maps, and of each query's softmax max_j q.k_j and sum_j exp(s (q.k_j - max))."""
    dtype = query.dtype
    query, key, value = map(wide, (query, key, value))
    dots = query @ key.mT
    peak = dots.amax(-1).detach()
    powers = (scale * (dots - peak[..., None])).exp()
    total = powers.sum(-1)
    shares = powers / total[..., None]
    return (shares @ value).to(dtype), shares[..., tokens].mean(1), peak, total.detach()


@jit
def _attend(
    query, key, value, out, peaks, totals, query_s, key_s, value_s, T, L, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    n, h = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    at, first = tl.program_id(0) * QUERIES, (n * tl.num_programs(1) + h) * T
    q = tile(head(query, query_s, 0, n, h), query_s, at, T, QUERIES, D, WIDTH)
    acc, peak, total = nothing(QUERIES, WIDTH)
    acc, peak, total = fold(
        acc, peak, total, q, head(key, key_s, 0, n, h), head(value, value_s, 0, n, h), key_s, value_s, 0, 1, 0, L,
        None, 0, 0, 0, scale, D, WIDTH, KEYS,
    )  # fmt: skip
    rows, d = at + tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    tl.store(peaks + first + rows, peak, mask=rows < T)
    tl.store(totals + first + rows, total, mask=rows < T)
    inside = (rows < T)[:, None] & (d < D)[None, :]
    place = first * D + rows[:, None] * D + d[None, :]
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


@jit
def _look(
    query, key, tokens, peaks, totals, maps, query_s, key_s, H, T, C, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    n, at = tl.program_id(2).to(tl.int64), tl.program_id(0) * QUERIES
    rows, chosen = at + tl.arange(0, QUERIES), tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    found = tl.zeros((QUERIES, KEYS), tl.float32)
    for h in range(0, H):
        q = tile(head(query, query_s, 0, n, h), query_s, at, T, QUERIES, D, WIDTH)
        k = gather(head(key, key_s, 0, n, h), key_s, tokens, chosen, C, D, WIDTH)
        found += shares(q, k, peaks, totals, (n * H + h) * T, rows, T, scale)
    inside = (rows < T)[:, None] & (chosen < C)[None, :]
    tl.store(maps + n * T * C + rows[:, None] * C + chosen[None, :], found / H, mask=inside)
