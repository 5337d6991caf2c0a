"""Extractors: positive states (n, d) and negative states (m, d) at one site -> the direction (d,) between them.

An extractor is any such function, and `fit` takes it; swapping both flips its direction. Rows are read in float32 at
least, and `positive[i]` and `negative[i]` answer the same prompt where a method pairs them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Extractor = Callable[[Tensor, Tensor], Tensor]


def mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """CAA (arXiv 2312.06681): mean of the positive rows - mean of the negative rows, (d,), in units of the states.

    Raises ValueError for rows that are not finite (n, d) of one width.
    """
    positive, negative = _rows(positive, negative)
    return positive.mean(0) - negative.mean(0)


def pca(positive: Tensor, negative: Tensor, centred: bool = False) -> Tensor:
    """First principal axis of the paired differences (RepE, arXiv 2310.01405), (d,), norm 1.

    delta_i = positive_i - negative_i, v = argmax_{|v| = 1} sum_i (delta_i . v)^2, with the sign of mean_i delta_i . v.
    centred=True subtracts the mean of the deltas first, as scikit-learn's PCA and repeng do: what all pairs share is
    then gone, and with it most of what a contrast is about.

    Raises ValueError for fewer than 2 pairs, counts that differ, and differences without a spread.
    """
    positive, negative = _rows(positive, negative)
    if len(positive) != len(negative) or len(positive) < 2:
        raise ValueError(
            f"pca of {len(positive)} positive and {len(negative)} negative rows: expected pairs, at least 2 of them; "
            "for one pair take method='mean'."
        )
    delta = positive - negative
    mean = delta.mean(0)
    _, spread, axes = torch.linalg.svd(delta - mean if centred else delta, full_matrices=False)
    if spread[0] <= 1e-6 * delta.abs().max() or not spread[0] > 0:
        raise ValueError("pca: the differences of all pairs are equal; expected pairs that differ. Take method='mean'.")
    return axes[0] if axes[0] @ mean >= 0 else -axes[0]


def probe(positive: Tensor, negative: Tensor, penalty: float = 1.0, mapped: bool = False) -> Tensor:
    """Weights of a logistic regression that tells positive from negative rows (`logistic`), (d,), norm 1.

    The weights separate, and they need not lie along what differs: they also cancel the noise that goes with it.
    mapped=True gives the pattern behind them, Cov(rows) w (Haufe et al., NeuroImage 87, 2014), which steers better.

    Raises ValueError for rows that are not finite (n, d) of one width, that are all equal, and penalty <= 0.
    """
    positive, negative = _rows(positive, negative)
    rows = torch.cat([positive, negative])
    labels = torch.arange(len(rows), device=rows.device) < len(positive)
    w = logistic(rows, labels, penalty).weight
    if mapped:
        centred = rows - rows.mean(0)
        w = centred.mT @ (centred @ w)
    if not w.norm() > 0:
        raise ValueError("probe: no direction separates these rows; expected rows whose means differ.")
    return w / w.norm()


class Logistic(NamedTuple):
    """p(positive | x) = sigmoid(weight . x + bias)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Log-odds (n,) of rows (n, d)."""
        return rows @ self.weight + self.bias


def logistic(rows: Tensor, labels: Tensor, penalty: float = 1.0) -> Logistic:
    """L2 logistic regression of bool labels (n,) on rows (n, d), by L-BFGS in float64.

    Minimises sum_i log(1 + exp(-y_i (w . z_i + b))) + penalty / 2 |w|^2 with y_i = +-1 and z the rows, centred and
    divided by one number, the root mean square of their entries: the result turns with the rows and does not depend on
    their unit. Solved in the span of the rows, so that n rows cost n^2 d however wide they are.

    Raises ValueError for penalty <= 0, for rows that are all equal, and where one label is missing.
    """
    from scipy.optimize import minimize

    if penalty <= 0 or labels.all() or not labels.any():
        raise ValueError(
            f"penalty {penalty}, {int(labels.sum())} of {len(labels)} rows positive: expected > 0, and both kinds."
        )
    exact = rows.double()
    mean = exact.mean(0)
    scale = (exact - mean).square().mean().sqrt()
    if not scale > 0:
        raise ValueError("logistic: all rows are equal; expected rows that differ.")
    u, s, axes = torch.linalg.svd((exact - mean) / scale, full_matrices=False)
    z, y = (u * s).cpu().numpy(), labels.double().cpu().numpy() * 2 - 1
    solution = minimize(_loss, _zeros(z), (z, y, penalty), "L-BFGS-B", jac=True, options={"gtol": 1e-8, "ftol": 1e-14})
    found = torch.as_tensor(solution.x).to(exact.device)
    weight = (found[:-1] @ axes) / scale
    return Logistic(weight.to(rows.dtype), (found[-1] - weight @ mean).to(rows.dtype))


def _zeros(z):
    import numpy as np

    return np.zeros(z.shape[1] + 1)


def _loss(w, z, y, penalty: float):
    """The loss of `logistic` and its gradient, at w = (weight, bias)."""
    import numpy as np
    from scipy.special import expit

    margin = y * (z @ w[:-1] + w[-1])
    slope = -y * expit(-margin)
    loss = np.logaddexp(0, -margin).sum() + penalty / 2 * w[:-1] @ w[:-1]
    return loss, np.append(z.T @ slope + penalty * w[:-1], slope.sum())


def _rows(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    shapes = tuple(positive.shape), tuple(negative.shape)
    if positive.ndim != 2 or negative.ndim != 2 or shapes[0][1] != shapes[1][1] or 0 in (*shapes[0], *shapes[1]):
        raise ValueError(
            f"positive rows {shapes[0]} and negative rows {shapes[1]}: expected (n, d) and (m, d), n, m > 0."
        )
    dtype = torch.promote_types(positive.dtype, torch.float32)
    positive, negative = positive.to(dtype), negative.to(dtype)
    if not (positive.isfinite().all() and negative.isfinite().all()):
        raise ValueError("rows that are not finite: load the model in bfloat16 or float32.")
    return positive, negative


METHODS: dict[str, Extractor] = {"mean": mean_difference, "pca": pca, "probe": probe}
