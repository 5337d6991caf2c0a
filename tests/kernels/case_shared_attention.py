"""shared_attention: values to the bound that `attention_error` states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType

import torch
from attention_cases import DTYPES, SIZES, Draw, attention_error, product, tokens_first
from kernel_cases import Case, Inputs, exact, meta, poisoned
from steer_kernels import flash, heads, reading, shared_attention
from torch import Tensor


def inputs(dtype: torch.dtype) -> Iterator[tuple[str, Inputs]]:
    draw = Draw(dtype)

    def rows(n: int, h: int, t: int, s: int, r: int, d: int, groups: int = 1) -> list[Tensor]:
        return [draw(groups, n, h, t, d) for _ in range(3)] + [draw(groups, r, h, s, d) for _ in range(2)]

    everything = [*map(poisoned, rows(2, 1, 20, 35, 2, 40, groups=2)), poisoned(draw.strength(2, 2, 20))]
    affines = poisoned(draw.pairs(2, 2, 1, 40)), poisoned(draw.pairs(2, 2, 1, 40))
    yield "everything", (*everything, [11, 20], [0, 11], 0.2, *affines)
    yield "smallest", (*rows(1, 1, 1, 1, 1, 1), None, [0, 1], [0, 0], 0.4, None, None)
    yield "text last", (*rows(2, 2, 40, 9, 3, 16), None, [0, 33], [33, 40], 0.4, None, draw.pairs(1, 2, 2, 16))
    query, key, value, *_ = rows(3, 1, 33, 1, 1, 8)
    yield "everyone", (query, key, value, key, value, None, [0, 0], [0, 0], 0.4, None, None)
    yield "expanded", (
        query[:, :1].expand_as(query), key, value, key[:, :1].expand(-1, 2, -1, -1, -1), value[:, 1:],
        torch.ones(1, 3, 33), [0, 33], [0, 0], 0.3, None, None,
    )  # fmt: skip
    yield "wide heads", (*rows(1, 1, 20, 35, 1, 160), draw.strength(1, 1, 20), [0, 20], [0, 0], 0.1, None, None)
    # products of 1e5, past the range of float16, and logits of 1e4 of both signs
    query, key, value, other_key, other_value = rows(1, 1, 20, 35, 2, 16)
    query, key, other_key = (200 * x.sign() for x in (query, key, other_key))
    yield "extreme", (query, key, value, other_key, other_value, None, [0, 20], [0, 0], 0.4, None, None)


def check(op: ModuleType, inputs: Inputs, found: Tensor) -> None:
    query, key, value, other_key, other_value, _, _, _, scale, affine, key_affine = exact(inputs)
    asking, everyone = heads.affine(query, affine), (key, other_key)
    products = [product(asking, key, key_affine), *(product(x, k) for x in (asking, query) for k in everyone)]
    dtype, keys = inputs[0].dtype, key.shape[-2] + other_key.shape[1] * other_key.shape[-2]
    rounded = affine is not None or key_affine is not None
    largest = float(max(value.abs().max(), other_value.abs().max()))
    error = largest * attention_error(scale * max(products), query.shape[-1], keys, dtype, rounded)
    expected = shared_attention.reference(*exact(inputs))
    torch.testing.assert_close(found.double(), expected, atol=error, rtol=0)


def typical(dtype: torch.dtype) -> dict[str, Inputs]:
    """StyleAligned with one reference; the text of a joint site and a region at FLUX."""
    found = {}
    for name, (h, d, tokens, text) in SIZES.items():
        text = text if name == "FLUX" else 0
        query, key, value = (tokens_first(2, 4, h, tokens + text, d, dtype=dtype) for _ in range(3))
        others = [tokens_first(2, 1, h, tokens, d, dtype=dtype) for _ in range(2)]
        strength, affines = meta(2, 4, tokens + text) if text else None, [meta(2, 4, h, 2, d) for _ in range(2)]
        found[name] = (
            query, key, value, *others, strength, [text, text + tokens], [0, text], 1 / math.sqrt(d), *affines
        )  # fmt: skip
    return found


CASE = Case(
    op=shared_attention,
    inputs=inputs,
    terms=lambda query, key, *others: query.shape[-1] + key.shape[-2],
    dtypes=DTYPES,
    check=check,
    typical=typical,
    tensor_cores=True,
    parts=(flash, reading),
    mutations=(
        ("step // each, start", "begin, start"),  # the first of the others, for each
        ("(m + 1) * EACH, 0, S", "m * EACH + 1, 0, S"),  # one of the others only
        ("strides[0] + n * strides[1]", "strides[0] + 0 * n"),  # the first row's, for each
        ("q = a * q", "q = q"),  # the a of own keys is lost
        ("step % each * KEYS", "0"),  # the first tile, for each
        ("0, 1, start, stop, scale", "0, 1, 0, stop, scale"),  # the text twice
        ("tl.max(tl.abs(weight), 0) == 0", "tl.min(tl.abs(weight), 0) == 0"),  # leaves out what has some share
    ),
)
