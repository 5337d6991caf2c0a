"""swap_attention: what a picture's queries read in the keys and values of others, in each of them by itself.

    q~    = a (gamma q_content + (1 - gamma) q) + b
    read  = sum_k w_k softmax(tau s q~ [K; K_k]^T) [V; V_k]         [K; V]: some of the row's own keys, or none
    out   = plain + strength (read - plain),                        plain = softmax(s q K^T) V over all own keys

the attention of StyleID (arXiv 2312.09008) for several styles, inside a region. No probabilities, no concatenated keys
and no copies of the styles for each row are written; what strength 0 or 1 makes superfluous is not computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from steer_kernels.heads import affine, attention, check, fits
from steer_kernels.launch import wide
from steer_kernels.operator import Operator
from steer_kernels.reading import launches, moved, operations
from torch import Tensor


def swap_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    style_key: Tensor,
    style_value: Tensor,
    weights: Sequence[float],
    strength: Tensor | None = None,
    content: Tensor | None = None,
    gamma: float = 0.0,
    tau: float = 1.0,
    own: tuple[int, int] = (0, 0),
    scale: float | None = None,
    query_affine: Tensor | None = None,
    key_affine: Tensor | None = None,
) -> Tensor:
    """Attention to the keys and values of styles, (groups, rows, heads, tokens, d); see the module's formula.

    query, content          (groups, rows, heads, tokens, d) float16, bfloat16 or float32
    key, value              (groups, rows, heads, keys, d): the row's own
    style_key, style_value  (groups, styles, heads, style keys, d): what all rows of a group look at
    weights                 one a style
    strength                (groups, rows, tokens); None: 1 everywhere
    gamma, tau              how much the content's queries count; > 0, how sharp the reading is
    own                     [start, stop) of own keys that are read beside each style's: the text of a joint site
    scale                   s > 0; None: 1 / sqrt(d)
    query_affine            (groups, rows, heads, 2, d): a and b for queries, such as AdaIN's; None: 1 and 0
    key_affine              (groups, styles, heads, 2, d): likewise for the styles' keys

    Any strides: what is shared can be expanded. The reference serves where a gradient is asked for. Raises ValueError
    for other shapes and numbers, mixed dtypes, and tensors on different devices.
    """
    check(
        "swap_attention",
        ("query", "key", "value", "style_key", "style_value", "content"),
        query=(query, "groups rows heads tokens d"),
        key=(key, "groups rows heads keys d"),
        value=(value, "groups rows heads keys d"),
        style_key=(style_key, "groups styles heads style_keys d"),
        style_value=(style_value, "groups styles heads style_keys d"),
        content=(content, "groups rows heads tokens d"),
        strength=(strength, "groups rows tokens"),
        query_affine=(query_affine, "groups rows heads 2 d"),
        key_affine=(key_affine, "groups styles heads 2 d"),
    )
    if len(weights) != style_key.shape[1]:
        raise ValueError(f"swap_attention: {len(weights)} weights for {style_key.shape[1]} styles; give one a style.")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if not (tau > 0 and scale > 0 and 0 <= own[0] <= own[1] <= key.shape[-2]):
        raise ValueError(
            f"swap_attention(tau={tau}, scale={scale}, own={own}): expected tau > 0, scale > 0 and 0 <= start <= stop "
            f"<= {key.shape[-2]} keys."
        )
    return OP(
        query, key, value, style_key, style_value, [float(w) for w in weights], strength, content, float(gamma),
        float(tau), list(own), scale, query_affine, key_affine,
    )  # fmt: skip


def reference(
    query, key, value, style_key, style_value, weights, strength, content, gamma, tau, own, scale, query_affine,
    key_affine,
):  # fmt: skip
    dtype, rows, part, found = query.dtype, query.shape[1], slice(*own), 0
    query, key, value, style_key, style_value = map(wide, (query, key, value, style_key, style_value))
    asking = query if content is None else gamma * content.to(query) + (1 - gamma) * query
    asking, style_key = affine(asking, query_affine), affine(style_key, key_affine)
    for k, weight in enumerate(weights):
        keys, values = (
            torch.cat([mine[..., part, :], theirs[:, k, None].expand(-1, rows, -1, -1, -1)], -2)
            for mine, theirs in ((key, style_key), (value, style_value))
        )
        found = found + weight * attention(asking, keys, values, tau * scale)
    if strength is not None:
        found = attention(query, key, value, scale).lerp(found, strength.to(query)[..., None, :, None])  # type: ignore
    return found.to(dtype)


def plan(
    query, key, value, style_key, style_value, weights, strength, content, gamma, tau, own, scale, query_affine,
    key_affine,
):  # fmt: skip
    return launches(
        query, key, value, style_key, style_value, weights, own, (0, 0), tau * scale, scale, strength, content, gamma,
        (query_affine, None, key_affine),
    )  # fmt: skip


OP = Operator(
    __name__,
    "(Tensor query, Tensor key, Tensor value, Tensor style_key, Tensor style_value, float[] weights, Tensor? strength, "
    "Tensor? content, float gamma, float tau, int[] own, float scale, Tensor? query_affine, Tensor? key_affine) "
    "-> Tensor",
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
