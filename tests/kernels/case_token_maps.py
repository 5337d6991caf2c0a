"""token_maps: values to the bound that `attention_error` states, gradients as every op's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType

import torch
from attention_cases import DTYPES, SIZES, Draw, attention_error, product, tokens_first
from kernel_cases import Case, Inputs, exact, poisoned
from steer_kernels import flash, token_maps
from torch import Tensor


def inputs(dtype: torch.dtype) -> Iterator[tuple[str, Inputs]]:
    draw = Draw(dtype)

    def rows(n: int, h: int, t: int, s: int, d: int) -> list[Tensor]:
        return [draw(n, h, t, d), draw(n, h, s, d), draw(n, h, s, d)]

    yield "everything", (*map(poisoned, rows(2, 2, 35, 37, 40)), [36, 0, 7], 0.2)
    yield "smallest", (*rows(1, 1, 1, 1, 1), [0], 0.4)
    yield "all keys", (*rows(1, 1, 66, 33, 8), list(range(33)), 0.4)
    query, key, value = rows(2, 2, 9, 5, 24)
    yield "expanded", (query[:1].expand_as(query), key[:, :1].expand_as(key), value, [3], 0.4)
    yield "wide heads", (*rows(1, 1, 9, 18, 160), [1, 17], 0.1)


def extremes(dtype: torch.dtype) -> Inputs:
    """Products of 1e5, past the range of float16, and logits of 1e4 of both signs."""
    draw = Draw(dtype)
    return 200 * draw(1, 1, 9, 16).sign(), 200 * draw(1, 1, 35, 16).sign(), draw(1, 1, 35, 16), [0, 34, 5], 0.4


def check(op: ModuleType, inputs: Inputs, found: tuple[Tensor, ...]) -> None:
    query, key, value, _, scale = exact(inputs)
    output, maps, *state = token_maps.reference(*exact(inputs))
    logits, d, keys = scale * product(query, key), query.shape[-1], key.shape[-2]
    error = attention_error(logits, d, keys, inputs[0].dtype, False)
    torch.testing.assert_close(found[0].double(), output, atol=float(value.abs().max()) * error, rtol=0)
    error = attention_error(logits, d, keys, torch.float32, False)
    torch.testing.assert_close(found[1].double(), maps, atol=error, rtol=0)
    for have, want in zip(found[2:], state, strict=True):
        torch.testing.assert_close(have.double(), want, atol=float(want.abs().max()) * error, rtol=0)


def typical(dtype: torch.dtype) -> dict[str, Inputs]:
    """Four words at cross-attention, and at the joint site of FLUX."""
    found = {}
    for name, (h, d, tokens, text) in SIZES.items():
        joint = tokens + text if name == "FLUX" else 0
        query = tokens_first(4, h, joint or tokens, d, dtype=dtype)
        key, value = (tokens_first(4, h, joint or text, d, dtype=dtype) for _ in range(2))
        found[name] = (query, key, value, [2, 5, 6, 9], 1 / math.sqrt(d))
    return found


CASE = Case(
    op=token_maps,
    inputs=inputs,
    terms=lambda query, key, *others: query.shape[-1] + query.shape[-2] + key.shape[-2],
    dtypes=DTYPES,
    check=check,
    typical=typical,
    gradients=(0, 1, 2),
    roundings=3,  # probabilities, the output that is read again, and the gradient
    tensor_cores=True,
    parts=(flash,),
    mutations=(
        ("found / H", "found"),  # the sum over heads
        ("found += shares", "found = shares"),  # the last head's
        ("key_s, chosen, c < C", "key_s, c, c < C"),  # the first keys
        ("mask=c < C, other=0)\n    found", "mask=c < 1, other=0)\n    found"),  # the first chosen one, for each
        ("/ total[:, None]\n", "/ tl.max(total, 0)\n"),  # not normalised
        ("tl.store(peaks + first + rows, peak", "tl.store(peaks + first + rows, peak + 1"),
        ("tl.store(totals + first + rows, total", "tl.store(totals + first + rows, total + 1"),
        ("        first = (n * H + h) * T", "        first = n * H * T"),  # the first head's peak and total
    ),
)
