"""resample: who continues, for each prompt's group of particles, from log-weights and without a word to the host.

    top_k       slot s continues the (s mod k)-th best of its group, ties to the lower number
    systematic  slot s continues the first j with F_j > (s + u) / n: one u a group, F = cumsum(softmax(logw)) in float64
                (Douc & Cappe 2005, arXiv cs/0507025)
    gumbel      slot s continues argmax_j logw_j - log(-log u_sj): multinomial resampling in log space (Gumbel-max)

A log-weight of -inf, or NaN, never continues, and where a group has nothing else every slot continues particle 0. These
are the rules `top_k`, `systematic` and `multinomial` of `steer.pick`. One program a group: a gather by the result can
follow on the device, as in `transition`.
"""

from __future__ import annotations

import torch
from steer_kernels import philox
from steer_kernels.launch import Launch, jit, power_of_two, tl, wide
from steer_kernels.operator import Operator
from steer_kernels.philox import RESAMPLING, draw
from torch import Tensor

RULES = ("top_k", "systematic", "gumbel")
MOST, SLOTS, TILE = 1024, 8, 2048  # particles of a group, slots filled at a time, and most numbers of both together
TINY = 2.0**-126  # u = 0 counts as this


def resample(
    logw: Tensor, rule: str, *, k: int = 1, uniforms: Tensor | None = None, seed: int = 0, step: int = 0
) -> Tensor:
    """Ancestors (P, n) int64, each the number of a particle in its group, from log-weights (P, n) float32.

    rule      "top_k", "systematic" or "gumbel"
    k         of "top_k": how many share the slots; fewer share them where fewer are above -inf
    uniforms  in [0, 1): (P, 1) float64 for "systematic", (P, n, n) float32 for "gumbel"; unless given they are drawn by
              Philox at (seed, step, number of the group), in a stream apart from that of `transition`

    Up to 1024 particles a group by the kernel. Raises ValueError for another rule, other shapes, and k outside 1 ... n.
    """
    if rule not in RULES or logw.ndim != 2 or 0 in logw.shape:
        raise ValueError(f"resample({tuple(logw.shape)}, {rule!r}): expected log-weights (P, n) and one of {RULES}.")
    (groups, n), drawn = logw.shape, {"systematic": (1,), "gumbel": (logw.shape[1],) * 2}.get(rule)
    if not 1 <= k <= n:
        raise ValueError(f"resample: {k} of {n} particles cannot be kept; expected 1 <= k <= n.")
    if uniforms is not None and (drawn is None or uniforms.shape != (groups, *drawn)):
        raise ValueError(
            f"resample({tuple(logw.shape)}, {rule!r}): uniforms {tuple(uniforms.shape)}; expected "
            + ("none." if drawn is None else f"{(groups, *drawn)}.")
        )
    philox.check_key(seed, step, RESAMPLING)
    return OP(logw.detach(), rule, k, uniforms, seed, step)


def reference(logw: Tensor, rule: str, k: int, uniforms: Tensor | None, seed: int, step: int) -> Tensor:
    logw = torch.where(logw.isnan(), -torch.inf, logw)
    slots = torch.arange(logw.shape[1], device=logw.device)
    possible = ~torch.isneginf(logw)
    if rule == "top_k":
        order = torch.sort(logw, dim=-1, descending=True, stable=True).indices
        return order.gather(-1, slots % possible.sum(-1, keepdim=True).clamp(1, k))
    if uniforms is None:
        uniforms = drawn(len(logw), logw.shape[1], rule, seed, step, logw.device)
    if rule == "gumbel":
        keys = wide(logw)[:, None] - (-wide(uniforms).clamp_min(TINY).log()).log()
        return keys.argmax(-1)
    p = torch.softmax(logw.double(), -1)
    p = torch.where(possible.any(-1, keepdim=True), p, slots == 0)
    index = torch.searchsorted(p.cumsum(-1), (slots + uniforms) / len(slots), right=True)
    return torch.minimum(index, torch.where(p > 0, slots, 0).amax(-1, keepdim=True))


def drawn(groups: int, n: int, rule: str, seed: int, step: int, device: torch.device) -> Tensor:
    """The uniforms of the Philox stream: of the first word at each counter."""
    count = 1 if rule == "systematic" else n * n
    words = philox.reference(torch.arange(groups, device=device), 4 * count, seed, step, RESAMPLING)[:, ::4]
    return philox.uniform(words).double() if rule == "systematic" else philox.uniform(words).view(-1, n, n)


@jit
def _weights(logw, row, n, row_stride, stride, BLOCK: tl.constexpr):
    j = tl.arange(0, BLOCK)
    weight = tl.load(logw + row * row_stride + j * stride, mask=j < n, other=float("-inf"))
    return j, tl.where(weight == weight, weight, float("-inf"))


@jit
def _top_k(logw, out, n, k, row_stride, stride, BLOCK: tl.constexpr, SLOTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    j, weight = _weights(logw, row, n, row_stride, stride, BLOCK)
    alive = tl.minimum(tl.maximum(tl.sum((weight > float("-inf")).to(tl.int32), 0), 1), k)
    rank = tl.zeros((BLOCK,), tl.int32)  # how many come before j
    for start in range(0, n, SLOTS):
        i = start + tl.arange(0, SLOTS)
        other = tl.load(logw + row * row_stride + i * stride, mask=i < n, other=float("-inf"))
        other = tl.where(other == other, other, float("-inf"))[:, None]
        before = (other > weight[None, :]) | ((other == weight[None, :]) & (i[:, None] < j[None, :]))
        rank += tl.sum((before & (i < n)[:, None]).to(tl.int32), 0)
    for start in range(0, n, SLOTS):
        s = start + tl.arange(0, SLOTS)
        chosen = (rank[None, :] == (s % alive)[:, None]) & (j < n)[None, :]
        index = tl.sum(tl.where(chosen, j[None, :], 0), 1)
        tl.store(out + row * n + s, index.to(tl.int64), mask=s < n)


@jit
def _systematic(
    logw, uniforms, out, n, row_stride, stride, seed, step, stream, BLOCK: tl.constexpr, SLOTS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    j, weight = _weights(logw, row, n, row_stride, stride, BLOCK)
    if uniforms is None:
        word, _, _, _ = draw(tl.zeros((1,), tl.int32), row, seed, step, stream)
        u = tl.sum(tl.uint_to_uniform_float(word), 0).to(tl.float64)
    else:
        u = tl.load(uniforms + row).to(tl.float64)
    largest = tl.max(weight, 0)
    possible = largest > float("-inf")  # type: ignore
    weight = tl.where(possible, weight, tl.where(j == 0, 0.0, float("-inf")))
    largest = tl.where(possible, largest, 0.0)
    p = tl.exp(weight.to(tl.float64) - largest.to(tl.float64))
    p = p / tl.sum(p, 0)
    reached = tl.where(j < n, tl.cumsum(p, 0), float("inf"))
    last = tl.max(tl.where(p > 0, j, 0), 0)
    for start in range(0, n, SLOTS):
        s = start + tl.arange(0, SLOTS)
        point = (s.to(tl.float64) + u) / n
        index = tl.sum((reached[None, :] <= point[:, None]).to(tl.int32), 1)
        tl.store(out + row * n + s, tl.minimum(index, last).to(tl.int64), mask=s < n)


@jit
def _gumbel(
    logw, uniforms, out, n, row_stride, stride, seed, step, stream,
    TINY: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    j, weight = _weights(logw, row, n, row_stride, stride, BLOCK)
    for start in range(0, n, SLOTS):
        s = start + tl.arange(0, SLOTS)
        cell = s[:, None] * n + j[None, :]
        inside = (s < n)[:, None] & (j < n)[None, :]
        if uniforms is None:
            word, _, _, _ = draw(cell, row, seed, step, stream)
            u = tl.uint_to_uniform_float(word)
        else:
            u = tl.load(uniforms + row * n * n + cell, mask=inside, other=0.5)
        keys = weight[None, :] - tl.log(-tl.log(tl.maximum(u, TINY)))
        keys = tl.where(inside, keys, float("-inf"))
        tl.store(out + row * n + s, tl.argmax(keys, 1, tie_break_left=True).to(tl.int64), mask=s < n)


def plan(logw: Tensor, rule: str, k: int, uniforms: Tensor | None, seed: int, step: int) -> tuple[Tensor, list[Launch]]:
    (groups, n), out = logw.shape, torch.empty(logw.shape, dtype=torch.int64, device=logw.device)
    args = {"logw": logw, "out": out, "n": n, "row_stride": logw.stride(0), "stride": logw.stride(1)}
    block = power_of_two(n, MOST)
    meta = {"BLOCK": block, "SLOTS": min(SLOTS, TILE // block)}
    if rule == "top_k":
        return out, [Launch(_top_k, (groups,), {**args, "k": k}, meta)]
    args |= {"uniforms": None if uniforms is None else uniforms.contiguous()}
    args |= {"seed": seed, "step": step, "stream": RESAMPLING}
    if rule == "systematic":
        return out, [Launch(_systematic, (groups,), args, meta)]
    return out, [Launch(_gumbel, (groups,), args, {**meta, "TINY": TINY})]


OP = Operator(
    __name__, "(Tensor logw, str rule, int k, Tensor? uniforms, int seed, int step) -> Tensor", reference, plan,
    fits=lambda logw, *rest: logw.shape[1] <= MOST and logw.dtype == torch.float32,
)  # fmt: skip


def bytes_moved(logw: Tensor, rule: str, k: int, uniforms: Tensor | None, seed: int, step: int) -> int:
    """Bytes: log-weights and uniforms once, ancestors once."""
    given = 0 if uniforms is None else uniforms.numel() * uniforms.element_size()
    return logw.numel() * (4 + 8) + given
