"""What swap_attention and shared_attention have in common: reading others in terms, and mixing the terms.

    out = plain + share (sum_m w_m softmax(s' q~ [K; K~; K_m]^T) [V; V~; V_m] - plain),   plain = softmax(s q K^T) V

One kernel reads: a block of queries folds one place of keys after the other into one softmax, for each term anew, and
is left out where its share is 0 everywhere. If there is more than one term, a second kernel mixes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from steer_kernels.flash import LOG2E, fold, head, nothing, sizes, tile
from steer_kernels.launch import Launch, blocks, jit, tl
from steer_kernels.traffic import size
from torch import Tensor

AFFINES = ("query_affine", "key_affine", "other_affine")
CELLS = 1024  # numbers that a mixing program holds


@jit
def pair(affine, index, D: tl.constexpr, WIDTH: tl.constexpr):
    """a and b (1, WIDTH) of one head, of contiguous (..., 2, d)."""
    d = tl.arange(0, WIDTH)[None, :]
    at = affine + index * 2 * D + d
    return tl.load(at, mask=d < D, other=0.0), tl.load(at + D, mask=d < D, other=0.0)


@jit
def facing(q, affine, index, like, D: tl.constexpr, WIDTH: tl.constexpr):
    """Queries for keys as they are, and what to add to their products: q.(a k + b) = (a q).k + q.b."""
    shift = tl.zeros((q.shape[0],), tl.float32)
    if affine is not None:
        a, b = pair(affine, index, D, WIDTH)
        shift = tl.sum(q * b, 1)
        q = a * q
    return q.to(like.dtype), shift


@jit
def _read(
    query, key, value, other_key, other_value, content, share, out, query_affine, key_affine, other_affine,
    query_s, key_s, value_s, other_key_s, other_value_s, content_s, share_s,
    N, T, S, OTHERS, EACH, raw_start, raw_stop, start, stop, gamma, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """What a block of queries reads in term m, to out[m]; nothing where its share is 0."""
    b, n, h = (tl.program_id(2) // N).to(tl.int64), (tl.program_id(2) % N).to(tl.int64), tl.program_id(1).to(tl.int64)
    blocks, heads = tl.cdiv(T, QUERIES), tl.num_programs(1)
    m, at = tl.program_id(0) // blocks, tl.program_id(0) % blocks * QUERIES
    rows, d = at + tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    weight = tl.load(share + b * share_s[0] + n * share_s[1] + rows * share_s[2], mask=rows < T, other=0.0)
    if tl.max(tl.abs(weight), 0) == 0:
        return
    like = tile(head(query, query_s, b, n, h), query_s, at, T, QUERIES, D, WIDTH)
    asking = like.to(tl.float32)
    if content is not None:
        theirs = tile(head(content, content_s, b, n, h), content_s, at, T, QUERIES, D, WIDTH)
        asking = gamma * theirs.to(tl.float32) + (1 - gamma) * asking
    if query_affine is not None:
        a, shift = pair(query_affine, (b * N + n) * heads + h, D, WIDTH)
        asking = a * asking + shift
    key, value = head(key, key_s, b, n, h), head(value, value_s, b, n, h)
    acc, peak, total = nothing(QUERIES, WIDTH)
    q, shift = facing(asking, None, 0, like, D, WIDTH)
    acc, peak, total = fold(
        acc, peak, total, q, shift, key, value, key_s, value_s, 0, 1, raw_start, raw_stop, scale, D, WIDTH, KEYS
    )
    q, shift = facing(asking, key_affine, (b * N + n) * heads + h, like, D, WIDTH)
    acc, peak, total = fold(
        acc, peak, total, q, shift, key, value, key_s, value_s, 0, 1, start, stop, scale, D, WIDTH, KEYS
    )
    q, shift = facing(asking, other_affine, (b * OTHERS + m * EACH) * heads + h, like, D, WIDTH)
    acc, peak, total = fold(
        acc, peak, total, q, shift, head(other_key, other_key_s, b, 0, h), head(other_value, other_value_s, b, 0, h),
        other_key_s, other_value_s, m * EACH, (m + 1) * EACH, 0, S, scale, D, WIDTH, KEYS,
    )  # fmt: skip
    first = ((m.to(tl.int64) * tl.num_programs(2) + tl.program_id(2)) * heads + h) * T
    place = (first + rows)[:, None] * D + d[None, :]
    inside = (rows < T)[:, None] & (d < D)[None, :]
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


@jit
def _mix(parts, plain, share, weights, out, share_s, N, H, T, D, SIZE, TERMS: tl.constexpr, CELLS: tl.constexpr):
    """plain + share (sum_m weights[m] parts[m] - plain); what has no share in it was not written and is not read."""
    cell = tl.program_id(0).to(tl.int64) * CELLS + tl.arange(0, CELLS)
    row = cell // (H * T * D)
    at = share + row // N * share_s[0] + row % N * share_s[1] + cell // D % T * share_s[2]
    s = tl.load(at, mask=cell < SIZE, other=0.0)
    found = (1 - s) * tl.load(plain + cell, mask=(cell < SIZE) & (s != 1), other=0.0)
    for m in tl.static_range(TERMS):  # type: ignore
        part = tl.load(parts + m * SIZE + cell, mask=(cell < SIZE) & (s != 0), other=0.0)
        found += s * tl.load(weights + m) * part
    tl.store(out + cell, found.to(out.dtype.element_ty), mask=cell < SIZE)


def launches(
    query: Tensor, key: Tensor, value: Tensor, other_key: Tensor, other_value: Tensor, weights: Sequence[float],
    raw: Sequence[int], own: Sequence[int], sharp: float, scale: float, strength: Tensor | None,
    content: Tensor | None, gamma: float, affines: Sequence[Tensor | None],
) -> tuple[Tensor, list[Launch]]:  # fmt: skip
    """Output and launches of plain + strength (sum_m w_m softmax(sharp q~ [K; K_m]^T) [V; V_m] - plain).

    Term m is of own keys in [raw) and [own), and of as many of the others' rows as there are for each weight.
    affines  of queries, own keys in [own) and the others' keys: (groups, rows, heads, 2, d), or None
    """
    groups, rows, heads, tokens, d = query.shape
    terms, device = len(weights), query.device
    out = torch.empty(query.shape, dtype=query.dtype, device=device)
    alone = strength is None and terms == 1 and weights[0] == 1
    parts = out[None] if alone else torch.empty(terms, *query.shape, device=device)
    ones = torch.ones((), device=device)
    share = (ones if strength is None else strength.float()).expand(groups, rows, tokens)
    given = {
        "query": query, "key": key, "value": value, "other_key": other_key, "other_value": other_value,
        "content": content, "share": share,
    }  # fmt: skip
    meta, warps, stages = sizes(d, query.dtype)
    args = {
        **given, **{f"{name}_s": (query if x is None else x).stride() for name, x in given.items()},
        **dict(zip(AFFINES, (None if x is None else x.float().contiguous() for x in affines), strict=True)),
        "out": parts, "N": rows, "T": tokens, "S": other_key.shape[-2], "OTHERS": other_key.shape[1],
        "EACH": other_key.shape[1] // terms, "raw_start": raw[0], "raw_stop": raw[1], "start": own[0], "stop": own[1],
        "gamma": gamma, "scale": sharp * LOG2E,
    }  # fmt: skip
    grid = (blocks(tokens, meta["QUERIES"]), heads, groups * rows)
    steps = [Launch(_read, (grid[0] * terms, *grid[1:]), args, meta, warps, stages)]
    if strength is not None:
        plain = torch.empty(query.shape, device=device)
        rest = 1 - share
        bare: dict = {"out": plain, "share": rest, "share_s": rest.stride(), "start": 0, "stop": key.shape[-2]}
        bare |= {"EACH": 0, **dict.fromkeys(AFFINES), "content": None, "raw_start": 0, "raw_stop": 0}
        steps.append(Launch(_read, grid, {**args, **bare, "scale": scale * LOG2E}, meta, warps, stages))
    if not alone:
        mixed = {
            "parts": parts, "plain": parts if strength is None else plain, "share": share, "share_s": share.stride(),
            "weights": torch.tensor(weights, dtype=torch.float32, device=device), "out": out,
            "N": rows, "H": heads, "T": tokens, "D": d, "SIZE": query.numel(),
        }  # fmt: skip
        steps.append(Launch(_mix, (blocks(query.numel(), CELLS),), mixed, {"TERMS": terms, "CELLS": CELLS}))
    return out, steps


def moved(out: Tensor, steps: list[Launch]) -> int:
    """Bytes of the planned kernels if each reads its tensors once and no block of queries skips a term."""
    total = out.numel() * out.element_size()
    for a in (launch.args for launch in steps):
        if "parts" in a:
            total += sum(size(a[name]) for name in ("parts", "share", "weights")) + size(a["plain"])
            continue
        spans = [slice(a["start"], a["stop"]), slice(a["raw_start"], a["raw_stop"])]
        read = [a[name] for name in ("query", "content", "share", *AFFINES)]
        read += [a[name][..., span, :] for name in ("key", "value") for span in spans]
        read += [a[name] for name in ("other_key", "other_value") if a["EACH"] > 0]
        written = [a["out"]] if len(steps) > 1 else []
        total += sum(size(x) for x in (*read, *written) if x is not None)
    return total


def operations(steps: list[Launch]) -> int:
    """Multiplications and additions of both products of each query with each key that it reads."""
    total = 0
    for a in (launch.args for launch in steps if "parts" not in launch.args):
        own = a["stop"] - a["start"] + a["raw_stop"] - a["raw_start"]
        total += a["out"].numel() * 4 * (own + a["EACH"] * a["S"])
    return total
