"""Reading and changing what passes at a site, whatever a block returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from steer.language.tower import Site, module_at

Change = Callable[[Tensor], Tensor | None]
"""states (rows, tokens, width) -> what takes their place, or None to leave them."""


def _behind(change: Change, flat: bool) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output  # some blocks return a tuple, some a tensor
        if states.ndim != 3 and not flat:
            raise ValueError(
                f"{type(module).__name__} returns states {tuple(states.shape)}, its rows run together (OPT's MLP does "
                "so): expected (rows, tokens, width). Take the block or the attention."
            )
        changed = change(states)
        return (changed, *output[1:]) if changed is not None and isinstance(output, tuple) else changed

    return hook


def _before(change: Change) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple) -> Any:
        changed = change(args[0])
        return None if changed is None else (changed, *args[1:])

    return hook


@contextmanager
def hooked(model: Any, changes: Iterable[tuple[Site, Change]], flat: bool = False) -> Iterator[None]:
    """Run each change at its site, in the order given: all of them or, if a site is not there, none.

    Leaves the model as it was, also after an exception. Raises ValueError for a site that the model does not have, and
    in a pass for states that are not (rows, tokens, width), unless `flat`: the vision towers of some models lay all
    pictures end to end, (pictures * tokens, width).
    """
    found = [(place, module_at(model, place), change) for place, change in changes]
    with ExitStack() as undo:
        for place, module, change in found:
            if place.part == "heads":
                hook = module.register_forward_pre_hook(_before(change))
            else:
                hook = module.register_forward_hook(_behind(change, flat))
            undo.callback(hook.remove)
        yield
