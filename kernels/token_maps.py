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
from steer_kernels.flash import LOG2E, fold, gather, head, nothing, shares, sizes, tile
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
    n, h, at = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(0) * QUERIES
    q = tile(head(query, query_s, 0, n, h), query_s, at, T, QUERIES, D, WIDTH)
    acc, peak, total = nothing(QUERIES, WIDTH)
    acc, peak, total = fold(
        acc, peak, total, q, tl.zeros((QUERIES,), tl.float32), head(key, key_s, 0, n, h), head(value, value_s, 0, n, h),
        key_s, value_s, 0, 1, 0, L, scale, D, WIDTH, KEYS,
    )  # fmt: skip
    rows, d = at + tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    first = (n * tl.num_programs(1) + h) * T
    tl.store(peaks + first + rows, peak, mask=rows < T)
    tl.store(totals + first + rows, total, mask=rows < T)
    place, inside = (first + rows)[:, None] * D + d[None, :], (rows < T)[:, None] & (d < D)[None, :]
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


@jit
def _look(
    query, key, tokens, peaks, totals, maps, query_s, key_s, H, T, C, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    n, at = tl.program_id(2).to(tl.int64), tl.program_id(0) * QUERIES
    rows, c = at + tl.arange(0, QUERIES), tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    chosen = tl.load(tokens + c, mask=c < C, other=0)
    found = tl.zeros((QUERIES, KEYS), tl.float32)
    for h in range(0, H):
        q = tile(head(query, query_s, 0, n, h), query_s, at, T, QUERIES, D, WIDTH)
        k = gather(head(key, key_s, 0, n, h), key_s, chosen, c < C, D, WIDTH)
        first = (n * H + h) * T
        peak = tl.load(peaks + first + rows, mask=rows < T, other=0.0)
        total = tl.load(totals + first + rows, mask=rows < T, other=1.0)
        found += shares(q, k, peak, total, scale)
    inside = (rows < T)[:, None] & (c < C)[None, :]
    tl.store(maps + (n * T + rows)[:, None] * C + c[None, :], found / H, mask=inside)


def plan(query: Tensor, key: Tensor, value: Tensor, tokens: list[int], scale: float) -> tuple[Any, list[Launch]]:
    (n, heads, length, d), device = query.shape, query.device
    out = torch.empty(query.shape, dtype=query.dtype, device=device)
    state = torch.promote_types(query.dtype, torch.float32)
    maps = torch.empty(n, length, len(tokens), dtype=state, device=device)
    peaks, totals = (torch.empty(n, heads, length, dtype=state, device=device) for _ in range(2))
    parts = {name: x[None] for name, x in (("query", query), ("key", key), ("value", value))}
    strides = {f"{name}_s": x.stride() for name, x in parts.items()}
    meta, warps, stages = sizes(d, query.dtype)
    shared = {"peaks": peaks, "totals": totals, "T": length, "scale": scale * LOG2E}
    attend = {**parts, **strides, **shared, "out": out, "L": key.shape[2]}
    look = {name: {**parts, **strides}[name] for name in ("query", "key", "query_s", "key_s")} | shared
    look |= {"tokens": torch.tensor(tokens, device=device), "maps": maps, "H": heads, "C": len(tokens)}
    rows = blocks(length, meta["QUERIES"])
    return (out, maps, peaks, totals), [
        Launch(_attend, (rows, heads, n), attend, meta, warps, stages),
        Launch(_look, (rows, blocks(len(tokens), meta["KEYS"]), n), look, meta, warps, stages),
    ]


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    query, key, value, ctx.tokens, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, output[0], *output[2:])
    ctx.mark_non_differentiable(*output[2:])


def _backward(ctx: Any, output: Tensor, maps: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *token_maps_gradient.OP(output, maps, *ctx.saved_tensors, ctx.tokens, ctx.scale), None, None


OP = Operator(
    __name__,
    "(Tensor query, Tensor key, Tensor value, int[] tokens, float scale) -> (Tensor, Tensor, Tensor, Tensor)",
    reference,
    plan,
    fits=fits,
    gradient=(_setup, _backward),
)


def bytes_moved(query: Tensor, key: Tensor, value: Tensor, tokens: list[int], scale: float) -> int:
    """Queries twice, keys, values and chosen keys once, the output, the maps, and peak and total twice."""
    n, heads, length, d = query.shape
    chosen = n * heads * len(tokens) * d * key.element_size()
    kept = n * length * (len(tokens) + 4 * heads) * 4
    return 3 * size(query) + size(key) + size(value) + chosen + kept


def flops(query: Tensor, key: Tensor, value: Tensor, tokens: list[int], scale: float) -> int:
    """Multiplications and additions of the two products of attention, and of the chosen columns anew."""
    return 2 * query.numel() * (2 * key.shape[2] + len(tokens))
