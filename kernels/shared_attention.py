"""shared_attention: every picture of a set looks at its own tokens and at those of others, in one softmax.

    read  = softmax(s q~ [K~; K_1; ...; K_R]^T) [V; V_1; ...; V_R],     x~ = a x + b
    out   = plain + strength (read - plain),                            plain = softmax(s q K^T) V over own keys

the attention of StyleAligned (arXiv 2312.02133), where a and b are AdaIN's, and of JeDi (arXiv 2407.06187). Keys are
never put beside each other nor repeated for each row; what strength 0 or 1 makes superfluous is not computed.
"""

from __future__ import annotations

import math

import torch
from steer_kernels.heads import affine, attention, check, fits
from steer_kernels.launch import wide
from steer_kernels.operator import Operator
from steer_kernels.reading import launches, moved, operations
from torch import Tensor


def shared_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    other_key: Tensor,
    other_value: Tensor,
    strength: Tensor | None = None,
    own: tuple[int, int] | None = None,
    raw: tuple[int, int] = (0, 0),
    scale: float | None = None,
    query_affine: Tensor | None = None,
    key_affine: Tensor | None = None,
) -> Tensor:
    """Attention to one's own keys and those of others, (groups, rows, heads, tokens, d); see the module's formula.

    query                   (groups, rows, heads, tokens, d) float16, bfloat16 or float32
    key, value              (groups, rows, heads, keys, d): the row's own
    other_key, other_value  (groups, others, heads, other keys, d): what all rows of a group look at beside
    strength                (groups, rows, tokens); None: 1 everywhere
    own                     [start, stop) of own keys that are read, with their a and b; None: all
    raw                     [start, stop) of own keys that are read as they are: the text of a joint site
    scale                   s > 0; None: 1 / sqrt(d)
    query_affine, key_affine  (groups, rows, heads, 2, d): a and b, such as AdaIN's; None: 1 and 0

    Any strides: what is shared can be expanded. The reference serves where a gradient is asked for. Raises ValueError
    for other shapes and numbers, mixed dtypes, and tensors on different devices.
    """
    check(
        "shared_attention",
        ("query", "key", "value", "other_key", "other_value"),
        query=(query, "groups rows heads tokens d"),
        key=(key, "groups rows heads keys d"),
        value=(value, "groups rows heads keys d"),
        other_key=(other_key, "groups others heads other_keys d"),
        other_value=(other_value, "groups others heads other_keys d"),
        strength=(strength, "groups rows tokens"),
        query_affine=(query_affine, "groups rows heads 2 d"),
        key_affine=(key_affine, "groups rows heads 2 d"),
    )
    keys = key.shape[-2]
    own = (0, keys) if own is None else own
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if not (scale > 0 and all(0 <= start <= stop <= keys for start, stop in (own, raw))):
        raise ValueError(
            f"shared_attention(scale={scale}, own={own}, raw={raw}): expected scale > 0 and 0 <= start <= stop <= "
            f"{keys} keys."
        )
    return OP(
        query, key, value, other_key, other_value, strength, list(own), list(raw), scale, query_affine, key_affine
    )


def reference(query, key, value, other_key, other_value, strength, own, raw, scale, query_affine, key_affine):
    dtype = query.dtype
    query, key, value, other_key, other_value = map(wide, (query, key, value, other_key, other_value))
    keys, values = (
        torch.cat([x[..., slice(*raw), :], aligned[..., slice(*own), :], _pooled(others, query.shape[1])], -2)
        for x, aligned, others in ((key, affine(key, key_affine), other_key), (value, value, other_value))
    )
    found = attention(affine(query, query_affine), keys, values, scale)
    if strength is not None:
        found = torch.lerp(attention(query, key, value, scale), found, strength.to(query)[..., None, :, None])
    return found.to(dtype)


def _pooled(others: Tensor, rows: int) -> Tensor:
    """(groups, rows, heads, others * tokens, d): the others' tokens as those of one, for each row."""
    return others.transpose(1, 2).flatten(2, 3)[:, None].expand(-1, rows, -1, -1, -1)


def plan(query, key, value, other_key, other_value, strength, own, raw, scale, query_affine, key_affine):
    return launches(
        query, key, value, other_key, other_value, [1.0], raw, own, scale, scale, strength, None, 0.0,
        (query_affine, key_affine, None),
    )  # fmt: skip


OP = Operator(
    __name__,
    "(Tensor query, Tensor key, Tensor value, Tensor other_key, Tensor other_value, Tensor? strength, int[] own, "
    "int[] raw, float scale, Tensor? query_affine, Tensor? key_affine) -> Tensor",
    reference,
    plan,
    fits=fits,
)


def bytes_moved(*inputs) -> int:
    """See `reading.moved`."""
    return moved(*plan(*inputs))


def flops(*inputs) -> int:
    """See `reading.operations`."""
    return operations(plan(*inputs)[1])
