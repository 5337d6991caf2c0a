"""score_select: cosine of N candidates to their prompt, the best one, and its latent, in two kernels.

    scores[p, n] = <image[p, n], text[p]> / (max(|image[p, n]|, EPS) max(|text[p]|, EPS)),   NaN -> -inf
    winner[p]    = the lowest n with the largest score          (0 where all are -inf)
    latents[p]   = latents[p, winner[p]], bit for bit

It is the inner step of best-of-N and CoDe with a dual-encoder reward. Dots and norms are accumulated in float32 and no
normalised copy of the embeddings is ever written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from steer_kernels.launch import Launch, blocks, jit, power_of_two, tl, wide
from steer_kernels.operator import Operator
from torch import Tensor

EPS = 1e-8  # as torch.nn.functional.cosine_similarity: an all-zero embedding scores 0
ROWS, COLS, SLAB = 8, 256, 1024  # candidates and features a scoring program holds; latent elements a copying one moves
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Selected(NamedTuple):
    """scores (P, N) float32, winner (P,) int64, latents (P, ...) in the dtype they came in."""

    scores: Tensor
    winner: Tensor
    latents: Tensor


def score_select(image: Tensor, text: Tensor, latents: Tensor) -> Selected:
    """Score candidates by cosine, select the best of each prompt and gather its latent.

    image    (P, N, D) float16, bfloat16 or float32: embeddings of N candidates for each of P prompts
    text     (P, D), same dtype: embeddings of the prompts
    latents  (P, N, ...), any dtype: what to gather

    All may have any strides; latents whose (...) is not dense in memory are copied first. No gradient.
    Raises ValueError for other shapes, for no candidates, for mixed dtypes and for tensors on different devices.
    """
    _check(image, text, latents)
    return Selected(*OP(image.detach(), text.detach(), latents.detach()))


def reference(image: Tensor, text: Tensor, latents: Tensor) -> Selected:
    image, text = wide(image), wide(text)[:, None]
    norms = image.norm(dim=-1).clamp_min(EPS) * text.norm(dim=-1).clamp_min(EPS)
    scores = (image * text).sum(-1) / norms
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    winner = scores.argmax(-1)
    return Selected(scores, winner, latents[torch.arange(len(winner), device=winner.device), winner])


@jit
def _score(
    image, text, scores, N, D, image_p, image_n, image_d, text_p, text_d,
    EPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    image += p * image_p + rows.to(tl.int64)[:, None] * image_n
    dot = tl.zeros((ROWS, COLS), tl.float32)
    image_square = tl.zeros((ROWS, COLS), tl.float32)
    text_square = tl.zeros((COLS,), tl.float32)
    for start in range(0, D, COLS):
        cols = start + tl.arange(0, COLS)
        t = tl.load(text + p * text_p + cols * text_d, mask=cols < D, other=0.0).to(tl.float32)
        inside = (rows < N)[:, None] & (cols < D)[None, :]
        x = tl.load(image + cols[None, :] * image_d, mask=inside, other=0.0).to(tl.float32)
        dot += x * t[None, :]
        image_square += x * x
        text_square += t * t
    image_norm = tl.maximum(tl.sqrt(tl.sum(image_square, 1)), EPS)
    text_norm = tl.maximum(tl.sqrt(tl.sum(text_square, 0)), EPS)
    score = tl.sum(dot, 1) / (image_norm * text_norm)
    score = tl.where(score == score, score, float("-inf"))  # only NaN differs from itself
    tl.store(scores + p * N + rows, score, mask=rows < N)


@jit
def _select(
    scores, winner, latents, out, N, L, latents_p, latents_n, latents_l, ROWS: tl.constexpr, SLAB: tl.constexpr
):
    p = tl.program_id(1).to(tl.int64)
    best = tl.zeros((), tl.int32)
    highest = tl.full((), float("-inf"), tl.float32)
    for start in range(0, N, ROWS):  # every program finds the winner anew: N floats from cache, and no third kernel
        rows = start + tl.arange(0, ROWS)
        value = tl.load(scores + p * N + rows, mask=rows < N, other=float("-inf"))
        here = tl.max(value, 0)
        best = tl.where(here > highest, start + tl.argmax(value, 0, tie_break_left=True), best)
        highest = tl.maximum(here, highest)
    if tl.program_id(0) == 0:
        tl.store(winner + p, best.to(tl.int64))
    cell = tl.program_id(0).to(tl.int64) * SLAB + tl.arange(0, SLAB)
    chosen = latents + p * latents_p + best.to(tl.int64) * latents_n
    tl.store(out + p * L + cell, tl.load(chosen + cell * latents_l, mask=cell < L), mask=cell < L)


def plan(image: Tensor, text: Tensor, latents: Tensor) -> tuple[Selected, list[Launch]]:
    (p, n, d), device = image.shape, image.device
    order = sorted(range(2, latents.dim()), key=latents.stride, reverse=True)  # memory order: channels_last is no copy
    sizes = [latents.shape[k] for k in order]
    slabs = latents.permute(0, 1, *order).reshape(p, n, -1)
    scores = torch.empty(p, n, device=device)
    winner = torch.empty(p, dtype=torch.int64, device=device)
    out = torch.empty(p, slabs.shape[2], dtype=latents.dtype, device=device)
    given = out.view(p, *sizes).permute(0, *(1 + order.index(k) for k in range(2, latents.dim())))
    strides = dict(zip(("image_p", "image_n", "image_d"), image.stride()), text_p=text.stride(0), text_d=text.stride(1))
    score = Launch(
        _score,
        (blocks(n, ROWS), p),
        {"image": image, "text": text, "scores": scores, "N": n, "D": d, **strides},
        {"EPS": EPS, "ROWS": ROWS, "COLS": power_of_two(d, COLS)},
    )
    strides = dict(zip(("latents_p", "latents_n", "latents_l"), slabs.stride()))
    select = Launch(
        _select,
        (blocks(slabs.shape[2], SLAB), p),
        {"scores": scores, "winner": winner, "latents": slabs, "out": out, "N": n, "L": slabs.shape[2], **strides},
        {"ROWS": power_of_two(n, COLS), "SLAB": SLAB},
    )
    return Selected(scores, winner, given), [score, select]


OP = Operator(__name__, "(Tensor image, Tensor text, Tensor latents) -> (Tensor, Tensor, Tensor)", reference, plan)


def bytes_moved(image: Tensor, text: Tensor, latents: Tensor) -> int:
    """Bytes the two kernels read and write: embeddings once, text once a block of rows, scores, two slabs a prompt."""
    p, n, d = image.shape
    slab = latents[0, 0].numel()
    embeddings = (p * n * d + p * d * blocks(n, ROWS)) * image.element_size()
    scores = p * n * 4 * (1 + blocks(slab, SLAB))
    return embeddings + scores + p * (8 + 2 * slab * latents.element_size())


def _check(image: Tensor, text: Tensor, latents: Tensor) -> None:
    shapes = f"image {tuple(image.shape)}, text {tuple(text.shape)}, latents {tuple(latents.shape)}"
    fits = image.dim() == 3 and latents.dim() >= 2 and latents.shape[:2] == image.shape[:2]
    if not fits or text.shape != (image.shape[0], image.shape[2]):
        raise ValueError(f"score_select: {shapes}; expected image (P, N, D), text (P, D), latents (P, N, ...).")
    if 0 in image.shape or 0 in latents.shape:
        raise ValueError(f"score_select: {shapes}; expected at least one of each: P, N, D, latent elements.")
    if image.dtype not in DTYPES or text.dtype != image.dtype:
        raise ValueError(
            f"score_select: image is {image.dtype} and text {text.dtype}; "
            "expected the same for both: float16, bfloat16 or float32."
        )
    devices = {image.device, text.device, latents.device}
    if len(devices) > 1:
        raise ValueError(f"score_select: tensors on {sorted(map(str, devices))}; move them to one device first.")
