"""transition: a sampler's inner step in one kernel: guidance, clean estimate, DDIM step with noise, gather.

    p   = unconditional + guidance (prediction - unconditional)
    x0  = what p means at x = alpha x0 + sigma eps: see `MEANINGS`
    x'  = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s noise,    s = eta sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2)

DDIM with an eta dial (arXiv 2010.02502, eq. 12) for any (alpha, sigma), diffusion and flow alike. All of it is linear,
x'[k] = a x[ancestor of k] + b p[ancestor of k] + s noise[k], so that latents and predictions are read once and x' is
written once, with float32 in between. The network before it costs far more than the step does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from steer_kernels import philox
from steer_kernels.launch import Launch, blocks, jit, tl, wide
from steer_kernels.operator import Operator
from steer_kernels.philox import normals
from torch import Tensor

QUADS = 256  # a program moves four numbers for each
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# kind of prediction -> (alpha, sigma) -> (i, j) with x0 = i x + j prediction
MEANINGS = {
    "epsilon": lambda alpha, sigma: (1 / alpha, -sigma / alpha),
    "v_prediction": lambda alpha, sigma: (alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)),
    "flow_prediction": lambda alpha, sigma: (1 / (alpha + sigma), -sigma / (alpha + sigma)),
    "sample": lambda alpha, sigma: (0.0, 1.0),
}


class Key(NamedTuple):
    """Names the noise of one step: normal numbers of `philox` at (seed, step), of each slot's own particle."""

    seed: int
    step: int


def transition(
    x: Tensor,
    prediction: Tensor,
    level: tuple[float, ...],
    to: tuple[float, ...],
    *,
    kind: str = "epsilon",
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
    eta: float = 0.0,
    noise: Tensor | Key | None = None,
    particles: Tensor | None = None,
    ancestors: Tensor | None = None,
) -> Tensor:
    """x' (b, ...) at the level `to`, from x (b, ...) and a network's prediction (b, ...) at `level`.

    level, to      (alpha, sigma), more is ignored; sigma > 0 before
    kind           "epsilon", "v_prediction", "flow_prediction" or "sample", which is x0 itself
    unconditional  the network's prediction without the prompt, for classifier-free guidance
    noise          (b, ...) normal numbers, or the key of a Philox stream; None at eta = 0
    particles      (b,) int64, whose stream slot k draws from: particle k's unless given; equal numbers, equal noise
    ancestors      (P, n) int64 with P n = b: slot (p, k) continues particle ancestors[p, k] of group p. An index
                   outside 0 ... n - 1 gives NaN on a GPU, where checking would wait, and an IndexError elsewhere

    float16, bfloat16 and float32 by the kernel; other types, and all where a gradient is wanted, by plain torch.
    Raises ValueError for shapes that do not fit, an unknown kind, epsilon at alpha = 0, and noise that is not told.
    """
    _check(x, prediction, unconditional, noise, particles, ancestors)
    a, b, scale = coefficients(level[:2], to[:2], kind, eta)
    if scale > 0 and noise is None:
        raise ValueError(f"transition: eta = {eta} and no noise; expected noise (b, ...) or Key(seed, step).")
    seed, step = noise if isinstance(noise, Key) else (0, 0)
    philox.check_key(seed, step)
    given = noise if isinstance(noise, Tensor) else None
    return OP(x, prediction, unconditional, given, particles, ancestors, float(guidance), a, b, scale, seed, step)


def coefficients(
    level: tuple[float, float], to: tuple[float, float], kind: str, eta: float
) -> tuple[float, float, float]:
    """(a, b, s) of x' = a x + b prediction + s noise."""
    (alpha, sigma), (alpha_to, sigma_to) = level, to
    if kind not in MEANINGS or not 0 <= eta <= 1:
        raise ValueError(f"transition: kind {kind!r}, eta {eta}; expected one of {(*MEANINGS,)} and 0 <= eta <= 1.")
    if sigma <= 0 or alpha_to <= 0 or (kind == "epsilon" and alpha == 0):
        raise ValueError(
            f"transition from (alpha, sigma) = {level} to {to}: expected sigma > 0 before and alpha > 0 after, and for "
            "an epsilon prediction alpha > 0 before; a v-prediction serves at alpha = 0."
        )
    scale = eta * sigma_to * math.sqrt(max(0.0, 1 - (alpha * sigma_to / (alpha_to * sigma)) ** 2))
    of_x, of_prediction = MEANINGS[kind](alpha, sigma)
    of_eps = math.sqrt(max(0.0, sigma_to**2 - scale**2)) / sigma
    of_x0 = alpha_to - of_eps * alpha
    return of_x0 * of_x + of_eps, of_x0 * of_prediction, scale


def reference(
    x: Tensor, prediction: Tensor, unconditional: Tensor | None, noise: Tensor | None, particles: Tensor | None,
    ancestors: Tensor | None, guidance: float, a: float, b: float, scale: float, seed: int, step: int,
) -> Tensor:  # fmt: skip
    value = wide(prediction)
    if unconditional is not None:
        value = wide(unconditional) + guidance * (value - wide(unconditional))
    moved = a * wide(x) + b * value
    if ancestors is not None:
        moved = moved.unflatten(0, ancestors.shape)[torch.arange(len(ancestors), device=x.device)[:, None], ancestors]
        moved = moved.flatten(0, 1)
    if scale > 0 and noise is None:
        particles = torch.arange(len(x), device=x.device) if particles is None else particles
        noise = philox.normal(particles, x.shape[1:].numel(), seed, step).view(x.shape).to(moved.dtype)
    return (moved if scale == 0 else moved + scale * wide(noise)).to(x.dtype)


@jit
def _transition(
    x, prediction, unconditional, noise, particles, ancestors, out, n, L, guidance, a, b, scale, seed, step,
    DRAWN: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1).to(tl.int64) * 4 * QUADS + tl.arange(0, 4 * QUADS)
    inside = cell < L
    source, known = slot, inside
    if ancestors is not None:
        ancestor = tl.load(ancestors + slot)
        source, known = slot // n * n + ancestor, inside & (ancestor >= 0) & (ancestor < n)
    value = tl.load(prediction + source * L + cell, mask=known, other=float("nan")).to(tl.float32)
    if unconditional is not None:
        base = tl.load(unconditional + source * L + cell, mask=known, other=0.0).to(tl.float32)
        value = base + guidance * (value - base)
    moved = a * tl.load(x + source * L + cell, mask=known, other=0.0).to(tl.float32) + b * value
    if noise is not None:
        moved += scale * tl.load(noise + slot * L + cell, mask=inside, other=0.0).to(tl.float32)
    elif DRAWN:
        particle = slot if particles is None else tl.load(particles + slot)
        quad = tl.program_id(1) * QUADS + tl.arange(0, QUADS)
        moved += scale * normals(quad, particle, seed, step, 0)
    tl.store(out + slot * L + cell, moved, mask=inside)


def plan(
    x: Tensor, prediction: Tensor, unconditional: Tensor | None, noise: Tensor | None, particles: Tensor | None,
    ancestors: Tensor | None, guidance: float, a: float, b: float, scale: float, seed: int, step: int,
) -> tuple[Tensor, list[Launch]]:  # fmt: skip
    out, length = torch.empty(x.shape, dtype=x.dtype, device=x.device), x.shape[1:].numel()
    tensors = {"x": x, "prediction": prediction, "unconditional": unconditional, "noise": noise if scale > 0 else None}
    tensors |= {"particles": particles, "ancestors": ancestors}
    args = {name: None if given is None else given.contiguous() for name, given in tensors.items()}
    sizes = {"out": out, "n": 1 if ancestors is None else ancestors.shape[1], "L": length}
    factors = {"guidance": guidance, "a": a, "b": b, "scale": scale, "seed": seed, "step": step}
    meta = {"DRAWN": noise is None and scale > 0, "QUADS": QUADS}
    return out, [Launch(_transition, (len(x), blocks(length, 4 * QUADS)), {**args, **sizes, **factors}, meta)]


OP = Operator(
    __name__,
    "(Tensor x, Tensor prediction, Tensor? unconditional, Tensor? noise, Tensor? particles, Tensor? ancestors, "
    "float guidance, float a, float b, float scale, int seed, int step) -> Tensor",
    reference,
    plan,
    fits=lambda x, prediction, *rest: x.dtype in DTYPES and prediction.dtype in DTYPES and x.numel() > 0,
)


def bytes_moved(x: Tensor, prediction: Tensor, *rest: Tensor | float | None) -> int:
    """Bytes: every tensor that is given once, x' once."""
    given = [x, prediction, *(tensor for tensor in rest if isinstance(tensor, Tensor)), x]
    return sum(tensor.numel() * tensor.element_size() for tensor in given)


def _check(x: Tensor, prediction: Tensor, unconditional, noise, particles, ancestors) -> None:
    for name, tensor in (("prediction", prediction), ("unconditional", unconditional), ("noise", noise)):
        if isinstance(tensor, Tensor) and tensor.shape != x.shape:
            raise ValueError(f"transition: {name} {tuple(tensor.shape)}; expected x's shape {tuple(x.shape)}.")
    if particles is not None and particles.shape != x.shape[:1]:
        raise ValueError(f"transition: particles {tuple(particles.shape)}; expected (b,) = {tuple(x.shape[:1])}.")
    if ancestors is not None and (ancestors.ndim != 2 or ancestors.numel() != len(x)):
        raise ValueError(f"transition: ancestors {tuple(ancestors.shape)}; expected (P, n) with P n = {len(x)}.")
