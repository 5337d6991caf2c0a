"""Networks made worse: transformer blocks left out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.state import Level


@dataclass(frozen=True)
class SkippedLayers(Controller):
    """The denoiser with some transformer blocks of its network left out, in all rows of its calls.

    network  the module that the denoiser calls
    layers   regular expression that is searched for in the names of its transformer blocks

    The network is as before after each evaluation. Raises ValueError if no transformer block has such a name.
    """

    network: nn.Module = field(repr=False)
    layers: str

    def __post_init__(self):
        self._blocks()

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def skipping(x: Tensor, level: Level, cond: Any) -> Tensor:
            with ExitStack() as stack:
                for block in self._blocks():
                    stack.enter_context(_left_out(block))
                return denoiser(x, level, cond)

        return skipping

    def _blocks(self) -> list[nn.Module]:
        return chosen(self.network, self.layers, lambda module: _places(module) is not None, "transformer block")


def chosen(network: nn.Module, layers: str, kind: Callable[[nn.Module], bool], what: str) -> list[nn.Module]:
    """Modules of a kind whose names hold the expression `layers`. Raises ValueError, with the names, if none does."""
    named = {name: module for name, module in network.named_modules() if kind(module)}
    found = [module for name, module in named.items() if re.search(layers, name)]
    if not found:
        raise ValueError(f"layers = {layers!r} is in no name of a {what}; there are: {list(named)}.")
    return found


def _places(module: nn.Module) -> tuple[str, ...] | None:
    """The arguments that a block returns, in its order; None if it is no transformer block that diffusers knows."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        known = TransformerBlockRegistry.get(type(module))
    except ValueError:
        return None
    text, picture = known.return_encoder_hidden_states_index, known.hidden_states_argument_name
    if text is None:
        return (picture,)
    both = (picture, known.encoder_hidden_states_argument_name)
    return both if text == 1 else both[::-1]


@contextmanager
def _left_out(block: nn.Module) -> Iterator[None]:
    """While active, a block returns what it is given."""
    own, places, signature = vars(block).get("forward"), _places(block) or (), inspect.signature(block.forward)

    def through(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        answer = tuple(given[name] for name in places)
        return answer[0] if len(answer) == 1 else answer

    block.forward = through
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own
