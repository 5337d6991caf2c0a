"""Where a language model's activations are: its decoder blocks and their parts, found without per-model code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

Part = Literal["block", "attention", "mlp", "heads"]
PARTS: tuple[Part, ...] = ("block", "attention", "mlp", "heads")
NAMES = {
    "attention": r"attn|attention",
    "mlp": r"mlp|feed_forward|ffn|fc2|experts",
    "heads": r"(^|\.)(o_proj|out_proj|c_proj|dense|wo)$",
}
"""Part -> what the modules that compute it, or that its heads enter, are called in transformers."""


class Tower(NamedTuple):
    """The text half of a model.

    decoder  the module that turns embeddings into final states
    blocks   its layers, `len(blocks)` of them
    width    d, the size of a state
    """

    decoder: nn.Module
    blocks: nn.ModuleList
    width: int


@dataclass(frozen=True, order=True)
class Site:
    """A place in the text half where states (rows, tokens, width) pass.

    layer  number of the decoder block, 0 first; negative counts from the last, resolved against a model
    part   "block": the residual stream behind it; "attention", "mlp": what that part adds to the stream, or in Bloom,
           whose parts do the sum, the stream behind it; "heads": what enters its attention's output projection
    """

    layer: int
    part: Part = "block"

    def __post_init__(self):
        if self.part not in PARTS:
            raise ValueError(f"part {self.part!r} of a site: expected one of {PARTS}.")

    def __str__(self) -> str:
        return f"{self.layer}" if self.part == "block" else f"{self.layer}.{self.part}"


def site(place: Site | int | str) -> Site:
    """A Site from an int (output of that block), its text ("12", "12.heads"), or itself."""
    if isinstance(place, str):
        layer, _, part = place.partition(".")
        if not re.fullmatch(r"-?\d+", layer):
            raise ValueError(f"site {place!r}: expected a layer, as in '12', or a layer and a part, as in '12.heads'.")
        return Site(int(layer), part or "block")  # pyright: ignore[reportArgumentType]
    return place if isinstance(place, Site) else Site(int(place))


def tower(model: Any) -> Tower:
    """The decoder of any transformers causal language model or vision-language model.

    Raises ValueError for an encoder-decoder, and where no single list of blocks has the length that the configuration
    states.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} is an encoder-decoder: expected a model with one decoder.")
    config = model.config.get_text_config(decoder=True)
    decoder = model.get_decoder()
    found = [blocks for blocks in _lists(decoder) if len(blocks) == config.num_hidden_layers]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__}: {len(found)} lists of {config.num_hidden_layers} blocks in its decoder "
            f"{type(decoder).__name__}; expected one. Pass the text model itself."
        )
    return Tower(decoder, found[0], config.hidden_size)


def _lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """The outermost lists: what is inside of a block is no tower, and need not be looked through."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _lists(child)


def resolved(model: Any, place: Site | int | str) -> Site:
    """The site with its layer counted from the first. Raises ValueError for a layer that the model does not have."""
    asked, count = site(place), len(tower(model).blocks)
    if not -count <= asked.layer < count:
        raise ValueError(f"layer {asked.layer}: expected -{count} to {count - 1} of {type(model).__name__}.")
    return Site(asked.layer % count, asked.part)


def module_at(model: Any, place: Site | int | str) -> nn.Module:
    """The module whose output (of "heads": whose input) is the site.

    Raises ValueError for a layer or part that the model does not have, with what its block holds.
    """
    asked = resolved(model, place)
    block = tower(model).blocks[asked.layer]
    if asked.part == "block":
        return block
    if asked.part == "mlp":
        return _named(dict(block.named_children()), "mlp")
    attention = _named(dict(block.named_children()), "attention")
    return attention if asked.part == "attention" else _named(dict(attention.named_modules()), "heads")


def width_at(model: Any, place: Site | int | str) -> int:
    """The size of a state at a site: that of the stream, or of all heads together."""
    if site(place).part != "heads":
        resolved(model, place)
        return tower(model).width
    projection: Any = module_at(model, place)
    return projection.in_features if hasattr(projection, "in_features") else len(projection.weight)  # Conv1D


def _named(modules: dict[str, nn.Module], part: str) -> nn.Module:
    """The one that is called like the part; norms around it may be too, so it must hold matrices."""
    holding = {name: m for name, m in modules.items() if any(p.ndim >= 2 for p in m.parameters())}
    found = [m for name, m in holding.items() if re.search(NAMES[part], name)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} of the modules {list(holding)} are called like its {part}: expected one.")
    return found[0]
