from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch
from kernel_cases import Case, Inputs, agree, exact, meta, poisoned
from steer_kernels import score_select
from torch import Tensor


def inputs(dtype: torch.dtype) -> Iterator[tuple[str, Inputs]]:
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
    image, text, latents = make(3, 10, 8, 2)
    image[0, ::2], image[1], image[2, 5:] = torch.nan, torch.nan, 0
    yield "NaN", (image, text, latents)
    image, text, latents = make(2, 260, 8, 2)
    image[0, 40], image[0, 7], image[0, 259], image[1] = text[0], text[0], text[0], image[1, :1]
    yield "ties", (image, text, latents)
    image, text, latents = make(2, 5, 8, 2)
    image[0, 3], image[1, 0, 0], text[0] = 0, torch.inf, 0
    yield "zero and infinite", (image, text, latents)


def check(op: ModuleType, inputs: Inputs, found: tuple) -> None:
    expected = score_select.reference(*exact(inputs))
    agree(found.scores, expected.scores, terms=inputs[0].shape[-1], scale=1.0)
    # near-ties may fall either way by rounding, so the winner is held to the op's own scores, exactly
    assert torch.equal(found.winner, found.scores.argmax(-1)), "winner is not the first largest score"
    rows = torch.arange(len(found.winner), device=found.winner.device)
    assert torch.equal(found.latents, inputs[2][rows, found.winner]), "latents are not the winner's, bit for bit"


def typical(dtype: torch.dtype) -> dict[str, Inputs]:
    sizes = {"SD1.5": (4, 16, 768, 4, 64, 64), "SDXL": (4, 16, 1280, 4, 128, 128), "FLUX": (4, 16, 768, 4096, 64)}
    return {
        name: tuple(meta(*shape, dtype=dtype) for shape in ((p, n, d), (p, d), (p, n, *slab)))
        for name, (p, n, d, *slab) in sizes.items()
    }


CASE = Case(
    op=score_select,
    inputs=inputs,
    terms=lambda image, text, latents: image.shape[-1],
    dtypes=(torch.float16, torch.bfloat16, torch.float32),
    check=check,
    typical=typical,
    mutations=(
        ("mask=inside, other=0.0", "mask=inside, other=1.0"),  # as if the feature mask were dropped
        ('score == score, score, float("-inf")', "score == score, score, 0.0"),  # NaN no longer counts as -inf
        ('other=float("-inf")', "other=2.0"),  # slots after the last candidate take part
        ("here > highest", "here >= highest"),  # ties to the last block
        ("best.to(tl.int64) * latents_n", "0 * latents_n"),  # always candidate 0
        ("cols[None, :] * image_d", "cols[None, :]"),  # takes features for contiguous
        ("text_square += t * t", "text_square += t"),
        ("+ cell, tl.load", "+ cell // 2, tl.load"),
    ),
)
