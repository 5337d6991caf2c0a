"""Attention whose logits stay within the range of half precision."""

from __future__ import annotations

import math

from torch import Tensor

from steer.diffusion.attention.attending import Ask, Attend, Edit


def pb_relax(alpha: float = 32.0) -> Edit:
    """An edit: precision-bottleneck relaxation (CogView, arXiv 2105.13290), plain attention that does not overflow.

        softmax(alpha (l - max l)) V   with   l = (q / (alpha sqrt(d))) k^T

    In float16 it is finite for logits alpha times as large as float16 can hold. Use it as `attending(network,
    sites(network), pb_relax())`. It keeps the map (rows, heads, queries, keys) in memory, as no fused kernel does, and
    is the attention itself: put it around the edits of other controllers. Raises ValueError unless alpha > 0.
    """
    if not alpha > 0:
        raise ValueError(f"pb_relax(alpha={alpha}): expected alpha > 0; the paper takes 32.")

    def relaxed(ask: Ask, attend: Attend) -> Tensor:
        scale = ask.scale or 1 / math.sqrt(ask.query.shape[-1])
        logits = (ask.query * (scale / alpha)) @ ask.key.mT
        if ask.mask is not None:
            adds = ask.mask.is_floating_point()
            logits = logits + ask.mask / alpha if adds else logits.masked_fill(~ask.mask, -math.inf)
        return ((logits - logits.amax(-1, keepdim=True)) * alpha).softmax(-1) @ ask.value

    return relaxed
