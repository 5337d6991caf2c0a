"""Statistics of features over chosen axes, inside a mask: what normalisation, AdaIN and colour matching are made of.

Everywhere: features x of any shape; `dim` are the axes that the statistics run over, (-2, -1) for the space of
(b, c, h, w), -2 for the tokens of (rows, heads, tokens, d); `mask` holds weights in [0, 1] (or booleans), as long as x
along `dim` and broadcast along the rest; variances are biased; sums are taken in float32 at least, results come in x's
own type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-5
SPACE = (-2, -1)

Axes = int | Sequence[int]


class Moments(NamedTuple):
    """Mean and biased variance, with the axes that they run over kept at length 1."""

    mean: Tensor
    var: Tensor

    @property
    def std(self) -> Tensor:
        """sqrt(var + 1e-5)."""
        return (self.var + EPS).sqrt()


def moments(x: Tensor, dim: Axes = SPACE, mask: Tensor | None = None) -> Moments:
    """mu = sum m x / sum m and var = sum m (x - mu)^2 / sum m; both 0 where the mask is empty.

    In float32, or in float64 for such x. Raises ValueError for a mask that does not fit x.
    """
    x = _wide(x)
    if mask is None:
        var, mean = torch.var_mean(x, dim, correction=0, keepdim=True)
        return Moments(mean, var)
    weight = _fitted(mask, x, dim)
    total = weight.sum(dim, keepdim=True)
    weight = weight / total.where(total > 0, 1)
    mean = (weight * x).sum(dim, keepdim=True)
    return Moments(mean, (weight * (x - mean).square()).sum(dim, keepdim=True))


def instance_norm(
    x: Tensor,
    gamma: Tensor | float = 1.0,
    beta: Tensor | float = 0.0,
    mask: Tensor | None = None,
    dim: Axes = SPACE,
) -> Tensor:
    """Instance normalization (arXiv 1607.08022): gamma (x - mu(x)) / sqrt(var(x) + 1e-5) + beta.

    gamma, beta  numbers, or tensors that broadcast to x
    mask         mu and var are those inside it; they are applied everywhere

    With the same statistics for training and use, and none of other samples. Raises ValueError for a mask that does not
    fit x.
    """
    own = moments(x, dim, mask)
    return ((x - own.mean) / own.std * gamma + beta).to(x.dtype)


def adain(
    x: Tensor,
    y: Tensor,
    alpha: float = 1.0,
    mask: Tensor | None = None,
    style_mask: Tensor | None = None,
    dim: Axes = SPACE,
) -> Tensor:
    """Adaptive instance normalization (arXiv 1703.06868): x given the mean and deviation of y, inside the mask.

        t = sigma(y) (x - mu(x)) / sigma(x) + mu(y),   sigma = sqrt(var + 1e-5);   (1 - alpha m) x + alpha m t

    y           of x's shape but for lengths of 1 and along `dim`, where it may be of any length
    alpha       strength: 0 is x itself, bit for bit, as are all places outside of the mask
    mask        where x is changed, and what mu(x) and var(x) are taken over; empty: nothing changes
    style_mask  what mu(y) and var(y) are taken over

    Raises ValueError for a mask that does not fit, for a style mask with nothing in it, and for y that does not fit x.
    """
    if style_mask is not None and not bool((style_mask > 0).flatten(1).any(1).all()):
        raise ValueError("a style mask has nothing in it: expected one that holds a part of the style's picture.")
    axes = _axes(dim, x)
    if y.dim() != x.dim() or any(n not in (1, m) for k, (n, m) in enumerate(zip(y.shape, x.shape)) if k not in axes):
        raise ValueError(
            f"y has shape {tuple(y.shape)}, x {tuple(x.shape)}: expected the same but for lengths of 1 and along {dim}."
        )
    x_wide, wanted = _wide(x), moments(y, dim, style_mask)
    target = instance_norm(x_wide, wanted.std, wanted.mean, mask, dim)
    weight = alpha if mask is None else alpha * _fitted(mask, x_wide, dim)
    return x_wide.lerp(target, weight).to(x.dtype)


def covariance(x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean (b, c, 1) and biased covariance (b, c, c) of the channels of x (b, c, h, w) over space, inside the mask."""
    mean = moments(x, SPACE, mask).mean.flatten(2)
    flat = _wide(x).flatten(2) - mean
    if mask is None:
        return mean, flat @ flat.mT / flat.shape[2]
    weight = _fitted(mask, _wide(x), SPACE).expand(len(x), *mask.shape[1:]).flatten(2)
    return mean, (weight * flat) @ flat.mT / weight.sum(2, keepdim=True).clamp_min(EPS)


def match_covariance(x: Tensor, y: Tensor, mask: Tensor | None = None, style_mask: Tensor | None = None) -> Tensor:
    """x (b, c, h, w) with the mean and covariance of the channels of y (b or 1, c, h', w'):

        A (x - mu(x)) + mu(y),   A = S(y)^(1/2) S(x)^(-1/2),   S = covariance + 1e-5 I,   symmetric roots

    The colour matching of arXiv 1606.05897. To keep the colours of a content, match the style's picture to it first.
    The masks say what the statistics are taken over; the map is applied everywhere. Raises ValueError for another
    number of channels and for masks that do not fit.
    """
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} channels and y {y.shape[1]}: expected as many.")
    (mean, own), (goal, theirs) = covariance(x, mask), covariance(y, style_mask)
    flat = _root(theirs, 0.5) @ _root(own, -0.5) @ (_wide(x).flatten(2) - mean) + goal
    return flat.unflatten(2, x.shape[2:]).to(x.dtype)


def _root(matrix: Tensor, power: float) -> Tensor:
    """(S + 1e-5 I)^power of symmetric S (b, c, c)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * (values.clamp_min(0) + EPS).pow(power)[:, None] @ vectors.mT


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _fitted(mask: Tensor, x: Tensor, dim: Axes) -> Tensor:
    """The mask in x's type, or a ValueError: a mask that is broadcast along `dim` would count its places wrongly."""
    axes = _axes(dim, x)
    fits = mask.dim() == x.dim() and all(m in (1, n) for m, n in zip(mask.shape, x.shape))
    if not fits or any(mask.shape[axis] != x.shape[axis] for axis in axes):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, x {tuple(x.shape)}: expected x's lengths along {dim}, and 1 or x's "
            "length along the others."
        )
    return mask.to(x.dtype)


def _axes(dim: Axes, x: Tensor) -> set[int]:
    return {axis % x.dim() for axis in ((dim,) if isinstance(dim, int) else dim)}
