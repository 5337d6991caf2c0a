"""What the attention ops' cases share: tensors, and how far two correct results may be apart."""

from __future__ import annotations

import math

import torch
from kernel_cases import meta
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SIZES = {  # heads, channels of a head, tokens of the picture, tokens of the text
    "SD1.5": (8, 40, 64 * 64, 77),
    "SDXL": (10, 64, 64 * 64, 77),
    "SD1.5 32x32": (8, 80, 32 * 32, 77),
    "FLUX": (24, 128, 4096, 512),
    "SD1.5 16x16": (8, 160, 16 * 16, 77),
}


class Draw:
    """Normal numbers of a dtype, from one stream."""

    def __init__(self, dtype: torch.dtype):
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def pairs(self, *shape: int) -> Tensor:
        """a and b of an affine map, (..., 2, d) float32."""
        return torch.randn(*shape[:-1], 2, shape[-1], generator=self.generator)

    def strength(self, groups: int, rows: int, tokens: int) -> Tensor:
        """In [0, 1], with 0 and 1 among them; of several rows the last is 1 in the first group, 0 in the last."""
        found = torch.rand(groups, rows, tokens, generator=self.generator)
        found[..., ::3], found[..., 1::3] = 0, 1
        if rows > 1:
            found[0, -1], found[-1, -1] = 1, 0
        return found


def tokens_first(*shape: int, dtype: torch.dtype) -> Tensor:
    """(..., heads, tokens, d) on the meta device, as projections leave it: heads beside each other in a token."""
    *rows, heads, tokens, d = shape
    return meta(*rows, tokens, heads, d, dtype=dtype).transpose(-2, -3)


def product(query: Tensor, key: Tensor, pairs: Tensor | None = None) -> float:
    """A bound of the magnitudes in any q.(a k + b) together; 0 if all are whole and so small that sums are exact."""
    query, key = query.double(), key.double()
    longest = float(query.norm(dim=-1).max())
    found = longest * float(key.norm(dim=-1).max())
    if pairs is not None:
        a, b = pairs.double().unbind(-2)
        return float(a.abs().max()) * found + longest * float(b.norm(dim=-1).max())
    whole = torch.equal(query, query.round()) and torch.equal(key, key.round())
    return 0.0 if whole and found < 2**24 else found


def attention_error(logits: float, d: int, keys: int, dtype: torch.dtype, rounded: bool) -> float:
    """How far two correct averages sum_j p_j v_j may be apart, relative to the largest |v|.

    logits   a bound of the magnitudes in one logit
    rounded  whether queries were rounded to the dtype before they met the keys

    A logit errs by (d + 4) 2^-24 of its magnitudes, and by the dtype's unit roundoff u if its query was rounded; p then
    errs by exp(2 err) - 1. Kernels round p and the average to the dtype and sum over all keys in float32: 3 u + 2 keys
    2^-24.
    """
    u = torch.finfo(dtype).eps / 2
    error = logits * ((d + 4) * 2.0**-24 + rounded * u)
    return math.expm1(min(2 * error, 1.0)) + 3 * u + 2 * keys * 2.0**-24
