"""Style transfer in one forward pass: pictures in, pictures out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steer.transfer.layers import feathered
from steer.transfer.statistics import match_covariance

SLACK = 1e-3  # decoders overshoot [0, 1] by rounding


@torch.no_grad()
def stylize(
    content: Tensor,
    style: Tensor | Sequence[Tensor],
    alpha: float = 1.0,
    mask: Tensor | None = None,
    style_mask: Tensor | Sequence[Tensor | None] | None = None,
    weights: Sequence[float] | None = None,
    keep_colour: bool = False,
    feather: int = 2,
    blend: bool = True,
    net: nn.Module | None = None,
) -> Tensor:
    """Pictures in the style of other pictures, in one forward pass: AdaIN (arXiv 1703.06868), by default.

        p = g((1 - alpha) f(c) + alpha sum_k w_k AdaIN(f(c), f(s_k)));   with a mask: m p + (1 - m) c

    content      (b, 3, h, w) in [0, 1], h and w multiples of 4
    style        (b or 1, 3, h', w') in [0, 1], or several of them
    alpha        strength in [0, 1]; 0 is the net's reconstruction of the content
    mask         (b or 1, 1, h, w) in [0, 1]: the region to change. Every convolution and statistic sees it alone, and
                 pixels outside of it come back bit for bit
    style_mask   the same for the style, or one (or None) for each of several
    weights      of several styles, sum 1; default equal
    keep_colour  give the style the content's colours first, by mean and covariance (arXiv 1606.05897)
    feather      pixels over which the style fades in inside the mask
    blend        also blend features with those of the content at every stage of the decoder
    net          `steer.zoo.adain_net()`; or `steer.zoo.arbitrary_net()`, where alpha goes from the content's own style

    Returns (b, 3, h, w) in [0, 1]. Raises ValueError for what has another shape or range.
    """
    styles = [style] if isinstance(style, Tensor) else list(style)
    inside = [style_mask] if isinstance(style_mask, Tensor) else list(style_mask or [None] * len(styles))
    weights = [1 / max(len(styles), 1)] * len(styles) if weights is None else list(weights)
    _check(content, styles, inside, weights, alpha, mask)
    content, mask = content.float(), None if mask is None else mask.to(content.device, torch.float32)
    inside = [None if m is None else m.to(content.device, torch.float32) for m in inside]
    styles = [s.to(content.device, torch.float32) for s in styles]
    if keep_colour:
        styles = [s.expand(len(content), -1, -1, -1) for s in styles]
        styles = [match_covariance(s, content, its, mask) for s, its in zip(styles, inside)]
    if net is None:
        from steer import zoo

        net = zoo.adain_net()
    fade = None if mask is None else feathered(mask, feather)
    made = net.to(content.device)(content, styles, weights, alpha, mask, inside, fade if blend else None).clamp(0, 1)
    return made if fade is None else content.lerp(made, fade)


def _check(content: Tensor, styles: list, inside: list, weights: list, alpha: float, mask: Tensor | None) -> None:
    _pictures(content, "content", None)
    if content.shape[2] % 4 or content.shape[3] % 4:
        raise ValueError(f"content is {tuple(content.shape[2:])}: expected multiples of 4; resize or pad.")
    if not styles:
        raise ValueError("no style: expected a picture, or several of them.")
    if not (len(styles) == len(inside) == len(weights)):
        raise ValueError(f"{len(styles)} styles with {len(inside)} masks and {len(weights)} weights: expected as many.")
    if not math.isclose(sum(weights), 1, abs_tol=1e-4):
        raise ValueError(f"weights {weights} sum to {sum(weights):g}: expected 1; divide each by the sum.")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha}: expected a strength from 0 to 1.")
    if mask is not None:
        _region(mask, content)
    for picture, its in zip(styles, inside):
        _pictures(picture, "style", len(content))
        if its is not None:
            _region(its, picture)
            if not bool((its > 0).flatten(1).any(1).all()):
                raise ValueError("a style mask is empty: expected one that holds a part of the style's picture.")


def _pictures(given: Tensor, what: str, count: int | None) -> None:
    """Raise ValueError unless `given` is (b, 3, h, w) in [0, 1], with b = 1 or `count`."""
    if given.dim() != 4 or given.shape[1] != 3 or (count is not None and len(given) not in (1, count)):
        raise ValueError(f"{what} has shape {tuple(given.shape)}: expected ({count or 'b'} or 1, 3, h, w).")
    if min(given.shape[2:]) < 16:
        raise ValueError(f"{what} is {tuple(given.shape[2:])}: expected sides of 16 or more.")
    if not given.is_floating_point() or bool(((given < -SLACK) | (given > 1 + SLACK)).any()):
        raise ValueError(f"{what} is {given.dtype} in [{given.min():g}, {given.max():g}]: expected floats in [0, 1].")


def _region(mask: Tensor, picture: Tensor) -> None:
    """Raise ValueError unless `mask` is (b or 1, 1, h, w) in [0, 1] for this picture."""
    if (
        mask.dim() != 4
        or mask.shape[1] != 1
        or len(mask) not in (1, len(picture))
        or mask.shape[2:] != picture.shape[2:]
    ):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}: expected ({len(picture)} or 1, 1, {picture.shape[2]}, "
            f"{picture.shape[3]}), one of the picture's size."
        )
    if bool(((mask < 0) | (mask > 1)).any()):
        raise ValueError(f"mask lies in [{mask.min():g}, {mask.max():g}]: expected [0, 1], 1 inside the region.")
