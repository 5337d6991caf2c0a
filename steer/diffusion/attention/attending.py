"""Edits of attention while it happens: queries, keys and values as they reach the softmax, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from steer.diffusion.attention.sites import Site

PARTS = ("query", "key", "value", "mask", "output")


@dataclass(frozen=True)
class Ask:
    """What a site asks for: softmax(scale query key^T + mask) value, (rows, heads, tokens, d) each.

    Projections, normalisations and rotary positions have been applied. `scale` None: 1 / sqrt(d). `text` says how many
    of a joint site's tokens are text.
    """

    site: Site
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    scale: float | None = None
    text: int = 0
    rest: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def picture(self) -> slice:
        """Where the picture's tokens lie among those of the queries (and of the keys, of a self or joint site)."""
        if self.site.kind != "joint":
            return slice(None)
        return slice(self.text, None) if self.site.text_first else slice(None, self.query.shape[-2] - self.text)

    @property
    def words(self) -> slice:
        """Where the text's tokens lie among the keys of a cross or joint site."""
        if self.site.kind == "cross":
            return slice(None)
        return slice(None, self.text) if self.site.text_first else slice(self.query.shape[-2] - self.text, None)

    def change(self, **parts: Any) -> Ask:
        """This ask with other parts."""
        return replace(self, **parts)


Attend = Callable[[Ask], Tensor]
"""Ask -> (rows, heads, query tokens, d)."""

Edit = Callable[[Ask, Attend], Tensor]
"""What stands between a site and its attention: (ask, attend) -> output; `attend(ask)` is what would have come out."""


@contextmanager
def attending(network: nn.Module, where: Sequence[Site], edit: Edit, writes: Sequence[str] = ()) -> Iterator[None]:
    """While active, what the sites in `where` attend to goes through `edit`; afterwards the network is as before.

    writes  the parts of an ask, of `PARTS`, that the edit puts its own in the place of. Edits of the same site are
            applied in the order in which a chain lists their controllers: the inner one first

    The processors stay in place, and so does the backend that computes the softmax, if it is torch's
    scaled_dot_product_attention. Raises ValueError where a site does not use that, where two edits write the same part
    of one site, and for an unknown part.
    """
    if unknown := set(writes) - set(PARTS):
        raise ValueError(f"an edit of attention writes {sorted(unknown)}: expected some of {PARTS}.")
    modes = [_Edited(site, edit, frozenset(writes)) for site in where]
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(_claimed(mode))
            stack.enter_context(_under(mode, mode.site.module))
        if any(mode.site.kind == "joint" for mode in modes):
            stack.enter_context(_counted_words(network, modes))
        yield
    if unseen := [mode.site.name for mode in modes if mode.called and not mode.seen]:
        raise ValueError(
            f"{unseen} did not call torch's scaled_dot_product_attention, so nothing could be edited there; use the "
            "network's default attention processors: network.set_default_attn_processor(), or the native backend."
        )


class _Edited(TorchFunctionMode):
    """The softmax attention of one module, edited."""

    def __init__(self, site: Site, edit: Edit, writes: frozenset[str]):
        super().__init__()
        self.site, self.edit, self.writes, self.text = site, edit, writes, 0
        self.called = self.seen = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = {**dict(zip(("query", "key", "value", "attn_mask"), args)), **(kwargs or {})}
        query, key, value = given.pop("query"), given.pop("key"), given.pop("value")
        mask, scale, self.seen = given.pop("attn_mask", None), given.pop("scale", None), True
        return self.edit(Ask(self.site, query, key, value, mask, scale, self.text, given), _attend)


def _attend(ask: Ask) -> Tensor:
    """The attention itself, or the next outer edit of the same site."""
    return nn.functional.scaled_dot_product_attention(
        ask.query, ask.key, ask.value, attn_mask=ask.mask, scale=ask.scale, **ask.rest
    )


_CLAIMS: dict[int, list[_Edited]] = {}  # by the identity of a module: the edits at work on it


@contextmanager
def _claimed(mode: _Edited) -> Iterator[None]:
    """While active, no other edit may write what this one writes."""
    others = _CLAIMS.setdefault(id(mode.site.module), [])
    for other in others:
        if both := other.writes & mode.writes:
            raise ValueError(
                f"two controllers write the {' and '.join(sorted(both))} of {mode.site.name}; give them different "
                "layers, or stretches of the run with `during`."
            )
    others.append(mode)
    try:
        yield
    finally:
        others.remove(mode)
        if not others:
            del _CLAIMS[id(mode.site.module)]


def lone(ask: Ask) -> bool:
    """Whether it asks for plain attention of as many heads, and no other edit of its site is at work."""
    same = ask.key.shape[:2] == ask.query.shape[:2] and ask.value.shape == ask.key.shape
    return same and ask.mask is None and not any(ask.rest.values()) and len(_CLAIMS.get(id(ask.site.module), ())) == 1


@contextmanager
def _under(mode: _Edited, module: nn.Module) -> Iterator[None]:
    """While active, the forward of one module runs under its mode."""

    def enter(*_: Any) -> None:
        mode.called = True
        mode.__enter__()

    def leave(*_: Any) -> None:
        mode.__exit__(None, None, None)

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _counted_words(network: nn.Module, modes: list[_Edited]) -> Iterator[None]:
    """While active, the modes know how many tokens of text the network is given.

    Where it embeds them: a steered pipeline calls the network's `forward` by itself, which runs none of its own hooks.
    """

    def count(_: nn.Module, args: tuple[Tensor]) -> None:
        for mode in modes:
            mode.text = args[0].shape[1]

    handle = network.context_embedder.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()
