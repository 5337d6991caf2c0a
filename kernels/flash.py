"""What the attention ops share: one tile of keys at a time is folded into a softmax that is never written down.

    softmax(s q K^T) V = sum_j exp(s (q.k_j - peak)) v_j / total,   peak = max_j q.k_j,   total the sum of the powers

(online softmax, arXiv 1805.02867; by tiles, FlashAttention, arXiv 2205.14135). Keys and values may come from several
places: each is folded in turn and nothing is concatenated. Sums are in float32; products of half-precision tiles run on
tensor cores. Tensors are (groups, rows, heads, tokens, d) with any strides. All functions but `sizes` run inside
kernels; their `scale` is s log2(e).
"""

from __future__ import annotations

import math

import torch
from steer_kernels.heads import WIDEST
from steer_kernels.launch import INTERPRETED, jit, power_of_two, tl

LOG2E = math.log2(math.e)
WIDEN = tl.constexpr(INTERPRETED) if tl is not None else False  # the interpreter cannot multiply bfloat16


@jit
def dot(a, b, acc):
    """acc + a b. Float32 times half precision is rounded to tf32: as many digits as float16 has, and range enough."""
    if b.dtype == tl.float32:
        return tl.dot(a, b, acc, input_precision="ieee")
    elif a.dtype == tl.float32 or WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="tf32")
    else:
        return tl.dot(a, b, acc)


@jit
def head(x, strides, b, n, h):
    """Where a head of a row of a group begins."""
    return x + b * strides[0] + n * strides[1] + h * strides[2]


@jit
def tile(x, strides, first, stop, TOKENS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """(TOKENS, WIDTH) of one head from token `first` on; zeros from token `stop` and channel D on."""
    t, d = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    inside = (t < stop - first)[:, None] & (d < D)[None, :]
    x += tl.cast(first, tl.int64) * strides[3]
    return tl.load(x + t[:, None] * strides[3] + d[None, :] * strides[4], mask=inside, other=0.0)


@jit
def gather(x, strides, tokens, inside, D: tl.constexpr, WIDTH: tl.constexpr):
    """As `tile`, of any tokens."""
    d = tl.arange(0, WIDTH)
    inside = inside[:, None] & (d < D)[None, :]
    return tl.load(x + tokens.to(tl.int64)[:, None] * strides[3] + d[None, :] * strides[4], mask=inside, other=0.0)


@jit
def fold(
    acc, peak, total, q, shift, key, value, key_s, value_s, begin, end, start, stop, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The softmax's state after keys `start` to `stop` of rows `begin` to `end`; `shift` is added to their products."""
    each = tl.cdiv(stop - start, KEYS)
    for step in range(begin * each, end * each):
        row, at = step // each, start + step % each * KEYS
        k = tile(key + row * key_s[1], key_s, at, stop, KEYS, D, WIDTH)
        dots = dot(q, tl.trans(k), tl.zeros((q.shape[0], KEYS), tl.float32) + shift[:, None])
        dots = tl.where((at + tl.arange(0, KEYS) < stop)[None, :], dots, float("-inf"))
        higher = tl.maximum(peak, tl.max(dots, 1))
        share = tl.exp2((dots - higher[:, None]) * scale)
        decay = tl.exp2((peak - higher) * scale)
        v = tile(value + row * value_s[1], value_s, at, stop, KEYS, D, WIDTH)
        acc = dot(share.to(v.dtype), v, acc * decay[:, None])
        total = total * decay + tl.sum(share, 1)
        peak = higher
    return acc, peak, total


@jit
def nothing(QUERIES: tl.constexpr, WIDTH: tl.constexpr):
    """The state before any key."""
    peak = tl.full((QUERIES,), float("-inf"), tl.float32)
    return tl.zeros((QUERIES, WIDTH), tl.float32), peak, tl.zeros((QUERIES,), tl.float32)


@jit
def shares(q, k, peak, total, scale):
    """Probabilities (queries, keys) from the state after all keys."""
    dots = dot(q, tl.trans(k), tl.zeros((q.shape[0], k.shape[0]), tl.float32))
    return tl.exp2((dots - peak[:, None]) * scale) / total[:, None]


def sizes(d: int, dtype: torch.dtype) -> tuple[dict[str, int], int, int]:
    """Compile-time constants (channels, their power of two, tokens that a program holds at once), warps and stages.

    Chosen so that nothing spills on any target.
    """
    width, half = max(16, power_of_two(d, WIDEST)), dtype != torch.float32
    large = width > (128 if half else 64)
    tokens = {"QUERIES": 64 if half else 16 if large else 32, "KEYS": 16 if large and not half else 32}
    return {"D": d, "WIDTH": width, **tokens}, 8 if large else 4, 2
