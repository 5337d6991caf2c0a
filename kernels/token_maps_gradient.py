"""token_maps_gradient: gradients of attention and of its probabilities at chosen keys, by tiles.

    p = softmax(s q k^T),   dp = g_output v^T + g_maps / heads in the columns of the chosen keys
    delta = sum_j p dp,     ds = p (dp - delta),     g_q = s ds k,   g_k = s ds^T q,   g_v = p^T g_output

(FlashAttention's backward pass, arXiv 2205.14135, with the maps' gradient in it.) p is computed anew from peak and
total, three times; no map of all keys is written.
"""

from __future__ import annotations

from typing import Any

import torch
from steer_kernels.flash import LOG2E, dot, gather, head, shares, sizes, tile
from steer_kernels.heads import fits
from steer_kernels.launch import Launch, blocks, jit, tl, wide
from steer_kernels.operator import Operator
from steer_kernels.traffic import size
from torch import Tensor


def reference(
    g_output: Tensor, g_maps: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, peaks: Tensor,
    totals: Tensor, tokens: list[int], scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients by query, key and value, (rows, heads, tokens, d) each, in their dtype."""
    dtypes = [x.dtype for x in (query, key, value)]
    g_output, query, key, value = map(wide, (g_output, query, key, value))
    p = (scale * query @ key.mT).softmax(-1)
    dp = g_output @ value.mT
    dp[..., tokens] += (g_maps / query.shape[1])[:, None].to(dp)
    ds = scale * p * (dp - (p * dp).sum(-1, keepdim=True))
    found = ds @ key, ds.mT @ query, p.mT @ g_output
    return tuple(x.to(dtype) for x, dtype in zip(found, dtypes, strict=True))


@jit
def _by_query(
    g_output, g_maps, query, key, value, output, peaks, totals, tokens, deltas, out, g_output_s, g_maps_s, query_s,
    key_s, value_s, output_s, H, T, L, C, scale, natural,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    n, h, at = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(0) * QUERIES
    key, value = head(key, key_s, 0, n, h), head(value, value_s, 0, n, h)
    q = tile(head(query, query_s, 0, n, h), query_s, at, T, QUERIES, D, WIDTH)
    g = tile(head(g_output, g_output_s, 0, n, h), g_output_s, at, T, QUERIES, D, WIDTH)
    o = tile(head(output, output_s, 0, n, h), output_s, at, T, QUERIES, D, WIDTH)
    rows, d, first = at + tl.arange(0, QUERIES), tl.arange(0, WIDTH), (n * H + h) * T
    peak = tl.load(peaks + first + rows, mask=rows < T, other=0.0)
    total = tl.load(totals + first + rows, mask=rows < T, other=1.0)
    delta = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    acc = tl.zeros((QUERIES, WIDTH), tl.float32)
    for start in range(0, C, KEYS):
        c = start + tl.arange(0, KEYS)
        k = gather(key, key_s, tl.load(tokens + c, mask=c < C, other=0), c < C, D, WIDTH)
        seen = g_maps + n * g_maps_s[0] + rows[:, None] * g_maps_s[1] + c[None, :] * g_maps_s[2]
        seen = tl.load(seen, mask=(rows < T)[:, None] & (c < C)[None, :], other=0.0) / H
        part = tl.where((c < C)[None, :], shares(q, k, peak, total, scale), 0.0) * seen
        delta += tl.sum(part, 1)
        acc = dot(part, k, acc)
    tl.store(deltas + first + rows, delta, mask=rows < T)
    for start in range(0, L, KEYS):
        k = tile(key, key_s, start, L, KEYS, D, WIDTH)
        v = tile(value, value_s, start, L, KEYS, D, WIDTH)
        p = tl.where((start + tl.arange(0, KEYS) < L)[None, :], shares(q, k, peak, total, scale), 0.0)
        dp = dot(g, tl.trans(v), tl.zeros((QUERIES, KEYS), tl.float32))
        acc = dot(p * (dp - delta[:, None]), k, acc)
    place, inside = (first + rows)[:, None] * D + d[None, :], (rows < T)[:, None] & (d < D)[None, :]
    tl.store(out + place, (acc * natural).to(out.dtype.element_ty), mask=inside)


@jit
def _by_key(
    g_output, g_maps, query, key, value, peaks, totals, slots, deltas, out, g_output_s, g_maps_s, query_s, key_s,
    value_s, H, T, L, scale, natural, VALUE: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """By value if VALUE, else by key: one sum at a time, so that both fit in registers."""
    n, h, at = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(0) * KEYS
    query, g_output = head(query, query_s, 0, n, h), head(g_output, g_output_s, 0, n, h)
    k = tile(head(key, key_s, 0, n, h), key_s, at, L, KEYS, D, WIDTH)
    v = tile(head(value, value_s, 0, n, h), value_s, at, L, KEYS, D, WIDTH)
    keys, d, first = at + tl.arange(0, KEYS), tl.arange(0, WIDTH), (n * H + h) * T
    slot = tl.load(slots + keys, mask=keys < L, other=-1)  # where among the chosen tokens, if it is one
    acc = tl.zeros((KEYS, WIDTH), tl.float32)
    for start in range(0, T, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        q = tile(query, query_s, start, T, QUERIES, D, WIDTH)
        g = tile(g_output, g_output_s, start, T, QUERIES, D, WIDTH)
        peak = tl.load(peaks + first + rows, mask=rows < T, other=0.0)
        total = tl.load(totals + first + rows, mask=rows < T, other=1.0)
        p = shares(q, k, peak, total, scale)
        if VALUE:
            acc = dot(tl.trans(p.to(g.dtype)), g, acc)
        else:
            seen = g_maps + n * g_maps_s[0] + rows[:, None] * g_maps_s[1] + slot[None, :] * g_maps_s[2]
            seen = tl.load(seen, mask=(rows < T)[:, None] & (slot >= 0)[None, :], other=0.0) / H
            delta = tl.load(deltas + first + rows, mask=rows < T, other=0.0)
            dp = dot(g, tl.trans(v), seen)
            acc = dot(tl.trans(p * (dp - delta[:, None])), q, acc)
    inside = (keys < L)[:, None] & (d < D)[None, :]
    place = ((n * H + h) * L + keys)[:, None] * D + d[None, :]
    tl.store(out + place, (acc * natural).to(out.dtype.element_ty), mask=inside)


def plan(
    g_output: Tensor, g_maps: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, peaks: Tensor,
    totals: Tensor, tokens: list[int], scale: float,
) -> tuple[tuple[Tensor, ...], list[Launch]]:  # fmt: skip
    (n, heads, length, d), keys, device = query.shape, key.shape[2], query.device
    found = tuple(torch.empty(x.shape, dtype=x.dtype, device=device) for x in (query, key, value))
    chosen = torch.tensor(tokens, device=device)
    slots = torch.full((keys,), -1, device=device).scatter(0, chosen, torch.arange(len(tokens), device=device))
    heads_of = {"g_output": g_output, "query": query, "key": key, "value": value, "output": output}
    given = {name: x[None] for name, x in heads_of.items()} | {"g_maps": g_maps}
    every = {
        **given, **{f"{name}_s": x.stride() for name, x in given.items()}, "tokens": chosen, "slots": slots,
        "peaks": peaks.contiguous(), "totals": totals.contiguous(), "deltas": torch.empty_like(peaks),
        "H": heads, "T": length, "L": keys, "C": len(tokens), "scale": scale * LOG2E,
    }  # fmt: skip
    meta, _, stages = sizes(d, query.dtype)
    side = 16 if query.dtype == torch.float32 else 32  # more is held at once than in attention
    meta, warps = {**meta, "QUERIES": side, "KEYS": side}, 8 if meta["WIDTH"] > 128 else 4

    def launch(kernel: Any, out: Tensor, natural: float, block: str, **more: bool) -> Launch:
        args = {name: every[name] for name in kernel.arg_names if name in every} | {"out": out, "natural": natural}
        grid = (blocks(out.shape[2], meta[block]), heads, n)
        return Launch(kernel, grid, args, {**meta, **more}, warps, stages)

    return found, [
        launch(_by_query, found[0], scale, "QUERIES"),
        launch(_by_key, found[1], scale, "KEYS", VALUE=False),
        launch(_by_key, found[2], 1.0, "KEYS", VALUE=True),
    ]


OP = Operator(
    __name__,
    "(Tensor g_output, Tensor g_maps, Tensor query, Tensor key, Tensor value, Tensor output, Tensor peaks, "
    "Tensor totals, int[] tokens, float scale) -> (Tensor, Tensor, Tensor)",
    reference,
    plan,
    fits=lambda g_output, g_maps, query, *others: fits(query),
)


def bytes_moved(g_output, g_maps, query, key, value, output, peaks, totals, tokens, scale) -> int:
    """What each of the three kernels reads once, with the keys of the chosen words, and the three gradients."""
    chosen = query.shape[0] * query.shape[1] * len(tokens) * query.shape[3] * key.element_size()
    thrice = sum(map(size, (g_output, query, key, value, peaks, totals)))
    return 3 * thrice + 2 * size(g_maps) + size(output) + chosen + 2 * size(peaks) + sum(map(size, (query, key, value)))


def flops(g_output, g_maps, query, key, value, output, peaks, totals, tokens, scale) -> int:
    """Multiplications and additions: eight products of every query with every key, two with each chosen one."""
    return 2 * query.numel() * (8 * key.shape[2] + 2 * len(tokens))
