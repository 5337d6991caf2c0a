"""steer_add: steering vectors added to the hidden states of a language model, in place, one read and one write of them.

    h' = h + sum_k s_k |h| v_k / |v_k|   relative,   or   h + sum_k s_k v_k;   then h' |h| / |h'| with keep_norm

for every token that the mask names and whose norm is at most `limit`; all others are not touched. Activation addition
(arXiv 2308.10248, 2312.06681) with the norm kept (arXiv 2507.18043): for one vector `Add` and `kept` of
`steer.language.edits`. Sums are in float32, and the result is rounded once.
"""

from __future__ import annotations

import torch
from steer_kernels.launch import Launch, jit, power_of_two, tl, wide
from steer_kernels.operator import Operator
from torch import Tensor

WIDEST = 16384  # a program holds one token
LEAST = 1e-30  # no norm counts as smaller
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def steer_add(
    hidden: Tensor,
    vectors: Tensor,
    strengths: Tensor,
    *,
    mask: Tensor | None = None,
    relative: bool = True,
    keep_norm: bool = True,
    limit: float = torch.inf,
) -> Tensor:
    """`hidden` itself, changed.

    hidden     (rows, tokens, d)
    vectors    (k, d) for all rows or (rows, k, d), of any floating type; one of zeros leads nowhere
    strengths  (k,) or (rows, k); 0 for all k leaves a row untouched, bit for bit
    mask       bool (rows or 1, tokens or 1): the tokens to change, all unless given
    limit      the norm above which a state is an attention sink, which is spared

    Widths up to 16384 of float16, bfloat16 and float32 by the kernel, the rest by the reference. Raises RuntimeError
    where a gradient of `hidden` is asked for, which an op in place does not give, and ValueError for shapes that do not
    fit and a mask that is not bool.
    """
    rows, tokens, d = hidden.shape if hidden.ndim == 3 else (-1, -1, -1)
    k = vectors.shape[-2] if vectors.ndim in (2, 3) else -1
    if vectors.shape not in ((k, d), (rows, k, d)) or strengths.shape not in ((k,), (rows, k)):
        raise ValueError(
            f"steer_add: hidden {tuple(hidden.shape)}, vectors {tuple(vectors.shape)}, strengths "
            f"{tuple(strengths.shape)}; expected (rows, tokens, d), (k, d) or (rows, k, d), (k,) or (rows, k)."
        )
    if mask is not None and (mask.dtype != torch.bool or mask.ndim != 2 or not _spread(mask, (rows, tokens))):
        raise ValueError(
            f"steer_add: mask {tuple(mask.shape)} {mask.dtype}; expected bool {rows, tokens}, or 1 of each."
        )
    if hidden.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("steer_add changes hidden states in place and takes no gradient: call it under no_grad.")
    OP.registered(hidden, vectors.detach(), strengths.detach(), mask, relative, keep_norm, float(limit))
    return hidden


def _spread(mask: Tensor, shape: tuple[int, int]) -> bool:
    return all(m in (1, n) for m, n in zip(mask.shape, shape))


def reference(
    hidden: Tensor, vectors: Tensor, strengths: Tensor, mask: Tensor | None,
    relative: bool, keep_norm: bool, limit: float,
) -> Tensor:  # fmt: skip
    h, v, s = wide(hidden), wide(vectors), wide(strengths)[..., None]
    size = h.norm(dim=-1, keepdim=True)
    if relative:
        length = v.norm(dim=-1, keepdim=True)
        v = v / torch.where(length > 0, length, 1)
    push = (s * v).sum(-2)[..., None, :]  # (d,) becomes (1, d), (rows, d) becomes (rows, 1, d)
    moved = h + (size * push if relative else push)
    if keep_norm:
        moved = moved * (size / moved.norm(dim=-1, keepdim=True).clamp_min(LEAST))
    chosen = (size <= limit) & (strengths != 0).any(-1)[..., None, None]
    if mask is not None:
        chosen = chosen & mask[..., None]
    return torch.where(chosen, moved.to(hidden.dtype), hidden)


@jit
def _steer_add(
    hidden, vectors, strengths, mask, T, D, K, limit, hidden_r, hidden_t, hidden_d, vectors_r, vectors_k, vectors_d,
    strengths_r, strengths_k, mask_r, mask_t,
    LEAST: tl.constexpr, RELATIVE: tl.constexpr, KEEP: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    row, token = (tl.program_id(0) // T).to(tl.int64), (tl.program_id(0) % T).to(tl.int64)
    chosen = True if mask is None else tl.load(mask + row * mask_r + token * mask_t)
    cols = tl.arange(0, COLS)
    here = hidden + row * hidden_r + token * hidden_t + cols.to(tl.int64) * hidden_d
    h = tl.load(here, mask=(cols < D) & chosen, other=0.0).to(tl.float32)
    size = tl.sqrt(tl.sum(h * h, 0))
    push = tl.zeros((COLS,), tl.float32)
    strongest = tl.full((), 0.0, tl.float32)
    for k in range(K):
        v = tl.load(vectors + row * vectors_r + k * vectors_k + cols * vectors_d, mask=cols < D, other=0.0)
        v = v.to(tl.float32)
        strength = tl.load(strengths + row * strengths_r + k * strengths_k).to(tl.float32)
        strongest = tl.maximum(strongest, tl.abs(strength))
        if RELATIVE:
            length = tl.sqrt(tl.sum(v * v, 0))
            strength = strength * size / tl.where(length > 0, length, 1.0)
        push += strength * v
    moved = h + push
    if KEEP:
        moved *= size / tl.maximum(tl.sqrt(tl.sum(moved * moved, 0)), LEAST)
    chosen = chosen & (size <= limit) & (strongest > 0)
    tl.store(here, moved, mask=(cols < D) & chosen)


def plan(
    hidden: Tensor, vectors: Tensor, strengths: Tensor, mask: Tensor | None,
    relative: bool, keep_norm: bool, limit: float,
) -> tuple[Tensor, list[Launch]]:  # fmt: skip
    rows, tokens, d = hidden.shape
    k = vectors.shape[-2]
    tensors = {"hidden": hidden, "vectors": vectors.expand(rows, k, d), "strengths": strengths.expand(rows, k)}
    tensors["mask"] = None if mask is None else mask.expand(rows, tokens)
    axes = {"hidden": "rtd", "vectors": "rkd", "strengths": "rk", "mask": "rt"}
    strides = {
        f"{name}_{axis}": 0 if tensor is None else tensor.stride(n)
        for name, tensor in tensors.items()
        for n, axis in enumerate(axes[name])
    }
    meta = {"LEAST": LEAST, "RELATIVE": relative, "KEEP": keep_norm, "COLS": power_of_two(d, WIDEST)}
    args = {**tensors, "T": tokens, "D": d, "K": k, "limit": limit, **strides}
    return hidden, [Launch(_steer_add, (rows * tokens,), args, meta, warps=min(16, max(4, meta["COLS"] // 512)))]


OP = Operator(
    __name__,
    "(Tensor(a!) hidden, Tensor vectors, Tensor strengths, Tensor? mask, bool relative, bool keep_norm, float limit)"
    " -> ()",
    reference,
    plan,
    fits=lambda hidden, *rest: hidden.dtype in DTYPES and hidden.numel() > 0 and hidden.shape[2] <= WIDEST,
    changes="hidden",
)


def bytes_moved(hidden: Tensor, vectors: Tensor, strengths: Tensor, mask: Tensor | None, *rest: float) -> int:
    """Bytes: all states once each way, as if all were chosen; vectors, strengths and mask once."""
    given = [hidden, hidden, vectors, strengths, *([] if mask is None else [mask])]
    return sum(tensor.numel() * tensor.element_size() for tensor in given)
