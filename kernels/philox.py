"""philox: random bits that belong to (seed, stream, step, particle), whatever else is drawn and in whatever order.

    words[b, 4 q + k] = word k of Philox4x32-10 at counter (q, particles[b], step, stream) under the key `seed`

Philox is counter-based (Salmon et al. 2011, Random123): ten rounds of multiplication turn 128 bits of counter and 64 of
key into four words, so a kernel draws its noise where it needs it and none is stored. Words 2 i and 2 i + 1 make the
normal numbers 2 i and 2 i + 1 (Box & Muller 1958), from uniforms as Triton makes them. `draw` and `normals` do it in
other kernels; in plain torch `reference` and `normal` do the same.
"""

from __future__ import annotations

from typing import Any

import torch
from steer_kernels.launch import Launch, blocks, jit, tl
from steer_kernels.operator import Operator
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS, RAISES = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
UNIT, LEAST = 4.6566127342e-10, 1e-7  # what Triton scales 31 bits by, and what it takes no logarithm below
QUADS = 256  # counters that one program turns into four words each
STEPS, RESAMPLING = 0, 1  # streams


def philox(particles: Tensor, count: int, seed: int, step: int = 0, stream: int = STEPS) -> Tensor:
    """(b, count) int32: the first `count` words of each particle, all 32 bits random.

    particles  (b,) int64, 0 <= particle < 2^32;    0 <= seed < 2^63;    0 <= step, stream < 2^31

    Raises ValueError for another shape or type of particles and for a seed, step or stream outside its range.
    """
    if particles.ndim != 1 or particles.dtype != torch.int64:
        raise ValueError(f"philox: particles {tuple(particles.shape)} {particles.dtype}; expected (b,) int64.")
    check_key(seed, step, stream)
    return OP(particles, count, seed, step, stream)


def check_key(seed: int, step: int, stream: int = STEPS) -> None:
    if not (0 <= seed < 2**63 and 0 <= step < 2**31 and 0 <= stream < 2**31):
        raise ValueError(
            f"philox: seed {seed}, step {step}, stream {stream}; expected 0 <= seed < 2^63, 0 <= step, stream < 2^31."
        )


def reference(particles: Tensor, count: int, seed: int, step: int, stream: int) -> Tensor:
    quads = torch.arange(blocks(count, 4), device=particles.device)
    c0, c1 = torch.broadcast_tensors(quads, particles[:, None])
    return torch.stack(rounds(c0, c1, step, stream, seed), -1).flatten(1)[:, :count].to(torch.int32)


def rounds(c0: Any, c1: Any, c2: Any, c3: Any, seed: int) -> tuple[Tensor, ...]:
    """The four words, 0 ... 2^32 - 1 in int64, at counter (c0, c1, c2, c3)."""
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(10):
        low, high = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2  # int64 wraps, and bits 0 ... 63 are right
        c0, c1 = high >> 32 & MASK ^ c1 ^ k0, high & MASK
        c2, c3 = low >> 32 & MASK ^ c3 ^ k1, low & MASK
        k0, k1 = k0 + RAISES[0] & MASK, k1 + RAISES[1] & MASK
    return c0, c1, c2, c3


def uniform(words: Tensor) -> Tensor:
    """Float32 in [0, 1) of 31 bits of each word."""
    return torch.where(words < 0, -1 - words, words).float() * UNIT


def normal(particles: Tensor, count: int, seed: int, step: int, stream: int = STEPS) -> Tensor:
    """(b, count) float64 normal numbers: Box-Muller of float32 uniforms."""
    words = reference(particles, 2 * blocks(count, 2), seed, step, stream)
    radius, turn = uniform(words).double().unflatten(1, (-1, 2)).unbind(-1)
    angle = 2 * torch.pi * turn
    pair = torch.sqrt(-2 * radius.clamp_min(LEAST).log()) * torch.stack((angle.cos(), angle.sin()))
    return pair.permute(1, 2, 0).flatten(1)[:, :count]


@jit
def draw(quad, particle, seed, step, stream):
    """The four words at the counters `quad`."""
    return tl.philox(seed, quad.to(tl.uint32), particle.to(tl.uint32), step, stream)


@jit
def normals(quad, particle, seed, step, stream):
    """Four normal numbers a counter, in order."""
    w0, w1, w2, w3 = draw(quad, particle, seed, step, stream)
    z0, z1 = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(w0), tl.uint_to_uniform_float(w1))
    z2, z3 = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(w2), tl.uint_to_uniform_float(w3))
    return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))


@jit
def _philox(particles, out, count, seed, step, stream, QUADS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    quad = tl.program_id(1) * QUADS + tl.arange(0, QUADS)
    w0, w1, w2, w3 = draw(quad, tl.load(particles + row), seed, step, stream)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    cell = tl.program_id(1) * 4 * QUADS + tl.arange(0, 4 * QUADS)
    tl.store(out + row * count + cell, words.to(tl.int32, bitcast=True), mask=cell < count)


def plan(particles: Tensor, count: int, seed: int, step: int, stream: int) -> tuple[Tensor, list[Launch]]:
    out = torch.empty(len(particles), count, dtype=torch.int32, device=particles.device)
    args = {"particles": particles.contiguous(), "out": out, "count": count, "seed": seed, "step": step}
    grid = (len(particles), blocks(count, 4 * QUADS))
    return out, [Launch(_philox, grid, {**args, "stream": stream}, {"QUADS": QUADS})]


OP = Operator(
    __name__, "(Tensor particles, SymInt count, int seed, int step, int stream) -> Tensor", reference, plan,
    fits=lambda particles, count, *key: len(particles) > 0 and count > 0,
)  # fmt: skip


def bytes_moved(particles: Tensor, count: int, seed: int, step: int, stream: int) -> int:
    """Bytes read, the particles' numbers, and written, the words."""
    return len(particles) * (8 + 4 * count)
