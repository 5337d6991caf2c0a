"""One row an op: the inputs its kernel must agree on with its reference, and mutations of it that must be noticed.

A new op adds one `Case`; parity, mutation, ahead-of-time and byte-count tests then run on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from steer_kernels import score_select
from torch import Tensor

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """op: the module; inputs: a dtype -> named inputs; check(op, inputs, found): raises AssertionError on disagreement;
    mutations: (text of the kernel, its broken replacement), all memory-safe; typical: shapes of a real use."""

    op: ModuleType
    inputs: Callable[[torch.dtype], Iterator[tuple[str, Inputs]]]
    check: Callable[[ModuleType, Inputs, tuple], None]
    dtypes: tuple[torch.dtype, ...]
    mutations: tuple[tuple[str, str], ...]
    typical: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        return self.op.__name__.rpartition(".")[2]

    def meta(self, dtype: torch.dtype) -> Inputs:
        return tuple(torch.empty(shape, dtype=dtype, device="meta") for shape in self.typical)


def tolerance(terms: int, output: torch.dtype) -> float:
    """How far two correct results of a normalised sum of `terms` products may be apart.

    Kernel and reference read the same numbers, whatever their dtype, and accumulate in float32 (unit roundoff 2^-24).
    Any order of summation errs by at most `terms` 2^-24 relative to the norms; two sides, each with a dot and two
    half-weight norms, make 4; the result is rounded once more to its own dtype.
    """
    return 4 * terms * 2.0**-24 + torch.finfo(output).eps


def poisoned(x: Tensor) -> Tensor:
    """The same numbers with odd strides, inside a larger buffer full of NaN: a read outside the tensor shows."""
    buffer = x.new_full([length + 3 for length in reversed(x.shape)], torch.nan).permute(*reversed(range(x.dim())))
    view = buffer[tuple(slice(1, length + 1) for length in x.shape)]
    return view.copy_(x)


def _score_select_inputs(dtype: torch.dtype) -> Iterator[tuple[str, Inputs]]:
    draw = torch.Generator().manual_seed(0)

    def make(p: int, n: int, d: int, *slab: int) -> list[Tensor]:
        return [torch.randn(shape, generator=draw).to(dtype) for shape in ((p, n, d), (p, d), (p, n, *slab))]

    sizes = [(1, 1, 1), (2, 3, 5, 3), (3, 9, 300, 4, 5, 7), (1, 8, 256, 1024), (2, 17, 257, 1030)]
    for size in sizes:
        yield "x".join(map(str, size)), tuple(make(*size))
    yield "strided", tuple(map(poisoned, make(3, 9, 300, 4, 5, 7)))
    image, text, latents = make(2, 9, 33, 4, 6, 5)
    channels_last = latents.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (2, 9))
    yield "channels_last", (image, text, channels_last)
    yield "shared latents", (image, text, latents[:, :1].expand(-1, 9, -1, -1, -1))
    image, text, latents = make(3, 260, 8, 2)
    image[0, ::2], image[1], image[2, 5:] = torch.nan, torch.nan, 0
    yield "NaN", (image, text, latents)
    image, text, latents = make(2, 260, 8, 2)
    image[0, 40], image[0, 7], image[0, 259], image[1] = text[0], text[0], text[0], image[1, :1]
    yield "ties", (image, text, latents)
    image, text, latents = make(2, 5, 8, 2)
    image[0, 3], image[1, 0, 0], text[0] = 0, torch.inf, 0
    yield "zero and infinite", (image, text, latents)


def _check_score_select(op: ModuleType, inputs: Inputs, found: tuple) -> None:
    expected = op.reference(*inputs)
    atol = tolerance(inputs[0].shape[-1], torch.float32)
    torch.testing.assert_close(found.scores, expected.scores, atol=atol, rtol=0)
    # near-ties may fall either way by rounding, so the winner is held to the op's own scores, exactly
    assert torch.equal(found.winner, found.scores.argmax(-1)), "winner is not the first largest score"
    rows = torch.arange(len(found.winner), device=found.winner.device)
    assert torch.equal(found.latents, inputs[2][rows, found.winner]), "latents are not the winner's, bit for bit"


CASES = (
    Case(
        score_select,
        _score_select_inputs,
        _check_score_select,
        (torch.float16, torch.bfloat16, torch.float32),
        (
            ("mask=inside, other=0.0", "mask=inside, other=1.0"),  # as if the feature mask were dropped
            ('score == score, score, float("-inf")', "score == score, score, 0.0"),  # NaN no longer counts as -inf
            ('other=float("-inf")', "other=2.0"),  # slots after the last candidate take part
            ("here > highest", "here >= highest"),  # ties to the last block
            ("best.to(tl.int64) * latents_n", "0 * latents_n"),  # always candidate 0
            ("cols[None, :] * image_d", "cols[None, :]"),  # takes features for contiguous
            ("text_square += t * t", "text_square += t"),
            ("+ cell, tl.load", "+ cell // 2, tl.load"),
        ),
        ((4, 16, 768), (4, 768), (4, 16, 4, 64, 64)),
    ),
)
