"""adain: features of the tokens of x given the mean and deviation of those of y, in one kernel.

    t = sigma(y) (x - mu(x)) / sigma(x) + mu(y),   sigma = sqrt(var + 1e-5);   (1 - alpha) x + alpha t

over the tokens of (rows, heads, tokens, d): AdaIN (arXiv 1703.06868) as StyleAligned (arXiv 2312.02133) applies it to
queries and keys. x of up to WHOLE tokens stays in registers and is read once; of a longer one the statistics are merged
block by block (Chan, Golub & LeVeque 1983) and it is read twice. All sums are in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from steer_kernels.launch import Launch, blocks, jit, power_of_two, tl, wide
from steer_kernels.operator import Operator
from torch import Tensor

EPS = 1e-5
COLS, WHOLE, BLOCK = 16, 1024, 128  # columns a program has; tokens it can hold at once, and takes at a time of more
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def adain(x: Tensor, y: Tensor, alpha: float = 1.0) -> Tensor:
    """x (rows, heads, tokens, d) with the statistics over tokens of y (rows or 1, heads or 1, any tokens, d).

    alpha is the strength: 0 is x itself. Any strides; float16, bfloat16 and float32 by the kernel, other types by the
    reference. Gradients flow to x and y, in plain torch. Raises ValueError for y that does not fit x and for tensors
    without tokens.
    """
    fits = x.ndim == y.ndim == 4 and all(n in (1, m) for n, m in zip(y.shape[:2], x.shape)) and y.shape[3] == x.shape[3]
    if not fits or 0 in (x.shape[2], y.shape[2]):
        raise ValueError(
            f"adain: x {tuple(x.shape)}, y {tuple(y.shape)}; expected (rows, heads, tokens, d) with tokens, and y of "
            "x's rows, heads and d, or 1 for the first two."
        )
    return OP(x, y, float(alpha))


def reference(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    (mean, std), (goal_mean, goal_std) = statistics(x), statistics(y)
    return wide(x).lerp((wide(x) - mean) / std * goal_std + goal_mean, alpha).to(x.dtype)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over tokens, (rows, heads, 1, d)."""
    var, mean = torch.var_mean(wide(x), 2, correction=0, keepdim=True)
    return mean, (var + EPS).sqrt()


@jit
def _block(start, T, D, t_stride, d_stride, TOKENS: tl.constexpr, COLS: tl.constexpr):
    """Where a block of tokens of this program's columns lies, and which of it is there."""
    tokens = start + tl.arange(0, TOKENS)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    cells = tokens.to(tl.int64)[:, None] * t_stride + cols.to(tl.int64)[None, :] * d_stride
    return cells, (tokens < T)[:, None] & (cols < D)[None, :]


@jit
def _merged(tile, inside, start, T, mean, square, TOKENS: tl.constexpr):
    """Mean of the first `start` tokens and those of a tile together, and their sum of squared distances from it."""
    count = tl.minimum(T - start, TOKENS).to(tl.float32)
    here = tl.sum(tile, 0) / count
    apart = tl.where(inside, tile - here[None, :], 0.0)
    share, shift = count / (start + count), here - mean
    return mean + shift * share, square + tl.sum(apart * apart, 0) + shift * shift * start * share


@jit
def _statistics(x, T, D, x_t, x_d, EPS: tl.constexpr, TOKENS: tl.constexpr, COLS: tl.constexpr):
    mean, square = tl.zeros((COLS,), tl.float32), tl.zeros((COLS,), tl.float32)
    for start in range(0, T, TOKENS):
        cells, inside = _block(start, T, D, x_t, x_d, TOKENS, COLS)
        tile = tl.load(x + cells, mask=inside, other=0.0).to(tl.float32)
        mean, square = _merged(tile, inside, start, T, mean, square, TOKENS)
    return mean, tl.sqrt(square / T + EPS)


@jit
def _moved(tile, mean, std, goal_mean, goal_std, alpha):
    target = (tile - mean[None, :]) / std[None, :] * goal_std[None, :] + goal_mean[None, :]
    near = tile + alpha * (target - tile)
    return tl.where(alpha < 0.5, near, target - (1 - alpha) * (target - tile))  # as torch.lerp: exact at both ends


@jit
def _adain(
    x, y, out, alpha, H, T, S, D, x_r, x_h, x_t, x_d, y_r, y_h, y_t, y_d, out_r, out_h, out_t, out_d,
    EPS: tl.constexpr, TOKENS: tl.constexpr, STYLE: tl.constexpr, COLS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    row, head = (tl.program_id(0) // H).to(tl.int64), (tl.program_id(0) % H).to(tl.int64)
    x, y, out = x + row * x_r + head * x_h, y + row * y_r + head * y_h, out + row * out_r + head * out_h
    goal_mean, goal_std = _statistics(y, S, D, y_t, y_d, EPS, STYLE, COLS)
    if WHOLE:
        cells, inside = _block(0, T, D, x_t, x_d, TOKENS, COLS)
        tile = tl.load(x + cells, mask=inside, other=0.0).to(tl.float32)
        nothing = tl.zeros((COLS,), tl.float32)
        mean, square = _merged(tile, inside, 0, T, nothing, nothing, TOKENS)
        cells, _ = _block(0, T, D, out_t, out_d, TOKENS, COLS)
        moved = _moved(tile, mean, tl.sqrt(square / T + EPS), goal_mean, goal_std, alpha)
        tl.store(out + cells, moved, mask=inside)
    else:
        mean, std = _statistics(x, T, D, x_t, x_d, EPS, TOKENS, COLS)
        for start in range(0, T, TOKENS):
            cells, inside = _block(start, T, D, x_t, x_d, TOKENS, COLS)
            tile = tl.load(x + cells, mask=inside, other=0.0).to(tl.float32)
            cells, _ = _block(start, T, D, out_t, out_d, TOKENS, COLS)
            tl.store(out + cells, _moved(tile, mean, std, goal_mean, goal_std, alpha), mask=inside)


def plan(x: Tensor, y: Tensor, alpha: float) -> tuple[Tensor, list[Launch]]:
    (rows, heads, tokens, d), out = x.shape, torch.empty_like(x)
    given = {"x": x, "y": y.expand(rows, heads, -1, -1), "out": out}
    strides = {f"{name}_{axis}": step for name, t in given.items() for axis, step in zip("rhtd", t.stride())}
    sizes = {"alpha": alpha, "H": heads, "T": tokens, "S": y.shape[2], "D": d}
    whole = tokens <= WHOLE
    meta = {"EPS": EPS, "COLS": COLS, "STYLE": power_of_two(y.shape[2], BLOCK), "WHOLE": whole}
    meta["TOKENS"] = power_of_two(tokens, WHOLE if whole else BLOCK)
    warps = max(4, meta["TOKENS"] // 64)  # 32 numbers a thread
    return out, [Launch(_adain, (rows * heads, blocks(d, COLS)), {**given, **sizes, **strides}, meta, warps)]


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, y, ctx.alpha = inputs
    ctx.save_for_backward(x, y)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, y = ctx.saved_tensors
    (mean, std), (goal_mean, goal_std) = statistics(x), statistics(y)
    g, unit, goal = wide(grad), (wide(x) - mean) / std, (wide(y) - goal_mean) / goal_std
    total, along = g.sum(2, keepdim=True), (g * unit).sum(2, keepdim=True)
    of_x = g.lerp(goal_std / std * (g - (total + unit * along) / x.shape[2]), ctx.alpha)
    of_y = (total.sum_to_size(goal_mean.shape) + goal * along.sum_to_size(goal_mean.shape)) * ctx.alpha / y.shape[2]
    return of_x.to(x.dtype), of_y.to(y.dtype), None


OP = Operator(
    __name__, "(Tensor x, Tensor y, float alpha) -> Tensor", reference, plan,
    fits=lambda x, y, alpha: x.dtype in DTYPES and y.dtype in DTYPES and x.numel() > 0,
    gradient=(_setup, _backward),
)  # fmt: skip


def bytes_moved(x: Tensor, y: Tensor, alpha: float) -> int:
    """Bytes: x once where a program holds its tokens, else twice; y once for each row and head; the result once."""
    passes = 2 if x.shape[2] <= WHOLE else 3
    style = x.shape[0] * x.shape[1] * y.shape[2] * y.shape[3]
    return passes * x.numel() * x.element_size() + style * y.element_size()
