"""Attention to others by one kernel, where there is one: what `Injected` makes of an ask, without its asks.

Rows that stay as they are, and tokens of text, have strength 0 and get plain attention from the same kernel.
"""

from __future__ import annotations

import torch
from steer_kernels import serving
from torch import Tensor

from steer.diffusion.attention import Ask, groups, lone
from steer.diffusion.controllers.style.rules import Rows, Rule, Shared, Swap
from steer.transfer.statistics import moments


def serves(rule: Rule, ask: Ask, rows: Rows) -> bool:
    """Whether kernels take the ask: one of plain attention that nothing else edits, without a gradient to take."""
    known = isinstance(rule, Swap) or (
        isinstance(rule, Shared)
        and rule.read
        and "value" not in rule.normalize
        and not (rule.everyone and rule.normalize)
    )
    parts = (ask.query, ask.key, ask.value)
    graded = torch.is_grad_enabled() and any(part.requires_grad for part in parts)
    plain = known and not graded and lone(ask)
    return plain and serving.kernel("swap_attention", groups(ask.query, rows.size)) is not None  # as the other's do


def fused(rule: Rule, ask: Ask, rows: Rows, dial: float | Tensor) -> Tensor:
    """(rows, heads, tokens, d): own + dial (injected - own) for the picture's tokens (tokens,) of one's own rows."""
    query, key, value = (groups(part, rows.size) for part in (ask.query, ask.key, ask.value))
    tokens = query.shape[-2]
    strength = torch.zeros(rows.size, tokens, device=query.device)
    strength[rows.own, rows.picture] = torch.as_tensor(dial, dtype=strength.dtype, device=query.device)
    strength = strength.expand(len(query), -1, -1)
    words = ask.words.indices(tokens)[:2] if ask.site.kind == "joint" else (0, 0)
    keys, values = rows.theirs(ask.key), rows.theirs(ask.value)
    if isinstance(rule, Swap):
        from steer_kernels.swap_attention import swap_attention  # imports Triton

        first = int(rule.gamma > 0)
        content = query[:, rows.others][:, :first].expand_as(query) if first else None
        return swap_attention(
            query, key, value, keys[:, first:], values[:, first:], rule.weights, strength, content, rule.gamma,
            rule.tau, words, ask.scale,
        ).flatten(0, 1)  # fmt: skip
    from steer_kernels.shared_attention import shared_attention

    own = (0, 0) if rule.everyone else rows.picture.indices(tokens)[:2]
    affines = [
        _aligning(part, rows) if name in rule.normalize else None
        for name, part in (("query", ask.query), ("key", ask.key))
    ]
    return shared_attention(query, key, value, keys, values, strength, own, words, ask.scale, *affines).flatten(0, 1)


def _aligning(part: Tensor, rows: Rows) -> Tensor:
    """(branches, rows, heads, 2, d): a and b of the AdaIN of one's own picture tokens; 1 and 0 for the other rows."""
    own, theirs = moments(rows.mine(part), -2), moments(rows.pooled(part), -2)
    a = theirs.std / own.std
    branches, size, heads, _, d = groups(part, rows.size).shape
    found = torch.tensor([1.0, 0.0], device=part.device)[:, None].repeat(branches, size, heads, 1, d)
    found[:, rows.own] = torch.cat([a, theirs.mean - a * own.mean], -2)
    return found
