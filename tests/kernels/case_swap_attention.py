"""swap_attention: values to the bound that `attention_error` states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType

import torch
from attention_cases import DTYPES, SIZES, Draw, attention_error, product, tokens_first
from kernel_cases import Case, Inputs, exact, meta, poisoned
from steer_kernels import flash, heads, reading, swap_attention
from torch import Tensor


def inputs(dtype: torch.dtype) -> Iterator[tuple[str, Inputs]]:
    draw = Draw(dtype)

    def rows(n: int, h: int, t: int, s: int, k: int, d: int, groups: int = 1) -> list[Tensor]:
        return [draw(groups, n, h, t, d) for _ in range(3)] + [draw(groups, k, h, s, d) for _ in range(2)]

    plain = (0.0, 1.0, [0, 0], 0.4, None, None)
    everything = [*map(poisoned, rows(2, 1, 20, 35, 2, 40, groups=2)), [0.3, 0.7], poisoned(draw.strength(2, 2, 20))]
    affines = poisoned(draw.pairs(2, 2, 1, 40)), poisoned(draw.pairs(2, 2, 1, 40))
    yield "everything", (*everything, poisoned(draw(2, 2, 1, 20, 40)), 0.75, 1.5, [3, 18], 0.2, *affines)
    yield "smallest", (*rows(1, 1, 1, 1, 1, 1), [1.0], None, None, *plain)
    yield "one style", (*rows(2, 1, 33, 65, 1, 16), [1.0], None, None, *plain)
    yield "weights", (*rows(1, 2, 9, 5, 3, 24), [2.0, 0.0, -0.5], None, None, *plain)
    query, key, value, style_key, style_value = rows(2, 1, 65, 33, 1, 8)
    content, half = query[:, :1].flip(-1).expand(-1, 2, -1, -1, -1), (torch.arange(65) < 32).float().expand(1, 2, 65)
    yield "expanded", (
        query, key[:, :1].expand_as(key), value, style_key.expand(-1, 2, -1, -1, -1),
        style_value.expand(-1, 2, -1, -1, -1), [0.5, 0.5], half, content, 1.0, 2.0, [64, 65], 0.3, None, None,
    )  # fmt: skip
    yield "wide heads", (*rows(1, 1, 20, 35, 1, 160), [1.0], draw.strength(1, 1, 20), None, *plain)
    # products of 1e5, past the range of float16, and logits of 1e4 of both signs
    query, key, value, style_key, style_value = rows(1, 1, 20, 35, 1, 16)
    query, key, style_key = (200 * x.sign() for x in (query, key, style_key))
    yield "extreme", (query, key, value, style_key, style_value, [1.0], draw.strength(1, 1, 20), None, *plain)


def check(op: ModuleType, inputs: Inputs, found: Tensor) -> None:
    query, key, value, style_key, style_value, weights, _, content, gamma, tau, _, scale, affine, key_affine = exact(
        inputs
    )
    asking = heads.affine(query if content is None else gamma * content + (1 - gamma) * query, affine)
    logits = scale * max(
        tau * product(asking, style_key, key_affine), tau * product(asking, key), product(query, key)
    )  # fmt: skip
    dtype, keys = inputs[0].dtype, key.shape[-2] + style_key.shape[-2]
    rounded = any(x is not None for x in (content, affine, key_affine))
    largest = max(value.abs().max(), style_value.abs().max()) * max(1.0, sum(map(abs, weights)))
    error = float(largest) * attention_error(logits, query.shape[-1], keys, dtype, rounded)
    expected = swap_attention.reference(*exact(inputs))
    torch.testing.assert_close(found.double(), expected, atol=error, rtol=0)


def typical(dtype: torch.dtype) -> dict[str, Inputs]:
    """A style, blended queries; the text of a joint site and a region at FLUX, two styles at SDXL."""
    found = {}
    for name, (h, d, tokens, text) in SIZES.items():
        text = text if name == "FLUX" else 0
        query, key, value, content = (tokens_first(2, 4, h, tokens + text, d, dtype=dtype) for _ in range(4))
        styles = [tokens_first(2, 2 if name == "SDXL" else 1, h, tokens, d, dtype=dtype) for _ in range(2)]
        weights = [0.5, 0.5] if name == "SDXL" else [1.0]
        strength = meta(2, 4, tokens + text) if text else None
        options = (strength, content, 0.75, 1.5, [0, text], 1 / math.sqrt(d), None, None)
        found[name] = (query, key, value, *styles, weights, *options)
    return found


CASE = Case(
    op=swap_attention,
    inputs=inputs,
    terms=lambda query, key, *others: query.shape[-1] + key.shape[-2],
    dtypes=DTYPES,
    check=check,
    typical=typical,
    tensor_cores=True,
    parts=(flash, reading),
    mutations=(
        ("(t < stop - first)[:, None]", "(t < stop - first + 1)[:, None]"),  # a token too much, of NaN
        ("(at + tl.arange(0, KEYS) < stop)[None, :]", "(at + tl.arange(0, KEYS) < stop + 1)[None, :]"),
        ("acc * decay[:, None]", "acc"),  # what was read before the peak rose keeps its weight
        ("total = total * decay + tl.sum(share, 1)", "total = total + tl.sum(share, 1)"),
        ("peak = higher", "peak = higher + 0.5"),
        (
            "t[:, None] * strides[3] + d[None, :] * strides[4]",
            "t[:, None] * strides[3] + d[None, :]",
        ),  # takes channels for contiguous
        ("m * EACH, (m + 1) * EACH, 0, S", "0, EACH, 0, S"),  # the first style for each weight
        ("gamma * theirs.to(tl.float32) + (1 - gamma) * asking", "gamma * asking + (1 - gamma) * theirs"),
        ("shift = tl.sum(q * b, 1)", "shift += 0"),  # the b of keys is lost
        ("asking = a * asking + shift", "asking = a * asking"),
        ('"scale": sharp * LOG2E', '"scale": scale * LOG2E'),  # no temperature
        ("raw_start, raw_stop, scale, D", "0, 0, scale, D"),  # none of the own keys
        ("s * tl.load(weights + m)", "s"),
        ("(1 - s) * tl.load(plain", "tl.load(plain"),
    ),
)
