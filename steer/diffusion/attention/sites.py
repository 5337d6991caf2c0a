"""Where a network attends: its attention modules, by name and kind."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

KINDS = ("self", "cross", "joint")
TEXT_FIRST = {"SD3Transformer2DModel": False, "FluxTransformer2DModel": True}
"""Networks whose picture and text tokens attend together; whether the text's come first."""


@dataclass(frozen=True)
class Site:
    """One attention module of a network.

    name        as `network.named_modules()` has it: "up_blocks.1.attentions.0.transformer_blocks.0.attn1"
    kind        self: of the picture's tokens over themselves; cross: over the text's; joint: of both over both
    text_first  of a joint site: the text's tokens come before the picture's
    """

    name: str
    kind: str
    module: Any = field(repr=False)
    text_first: bool = False


def sites(network: nn.Module, kind: str | tuple[str, ...] = KINDS, layers: str = "") -> list[Site]:
    """The sites of a kind (or kinds) whose names hold the regular expression `layers`, in the order of the network.

    Raises ValueError, with the names that there are, if there is none; for an unknown kind; and for a network whose
    tokens steer cannot tell apart.
    """
    kinds = (kind,) if isinstance(kind, str) else tuple(kind)
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"sites of kind {sorted(unknown)}: expected some of {KINDS}.")
    every = _sites(network)
    found = [site for site in every if site.kind in kinds and re.search(layers, site.name)]
    if not found:
        there = {one: [site.name for site in every if site.kind == one] for one in KINDS}
        raise ValueError(
            f"{type(network).__name__} has no {' or '.join(kinds)}-attention with layers = {layers!r} in its name; "
            f"there is {there}."
        )
    return found


def _sites(network: nn.Module) -> list[Site]:
    plain = getattr(network, "_orig_mod", network)  # what torch.compile wraps
    together = TEXT_FIRST.get(type(plain).__name__)
    found = []
    for name, module in plain.named_modules():
        if not hasattr(module, "to_q") or "Linear" in type(getattr(module, "processor", None)).__name__:
            continue  # no attention, or one without a softmax (Sana)
        alone = together is None or name.endswith("attn2")  # the picture-only attention of SD 3.5 blocks
        kind = ("cross" if getattr(module, "is_cross_attention", False) else "self") if alone else "joint"
        found.append(Site(name, kind, module, bool(together)))
    return found
