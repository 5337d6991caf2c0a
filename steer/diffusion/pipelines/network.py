"""One call of a pipeline's network: which of its arguments hold rows, which rows need evaluating, in what batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_unflatten

from steer.diffusion.loop import first_of

BESIDE = "beside the latents"
"""The entry of a call's cond for what the network's input holds beside the particle: mask, masked picture."""


@dataclass(frozen=True)
class Call:
    """The keyword arguments of one network call on c blocks (branches of classifier-free guidance) of `slots` rows.

    Rows lie block-major, as `cat([unconditional, conditional])` leaves them: block j of slot s is row j * slots + s.
    Every tensor with as many rows as the input is taken to hold rows, those named in `rowless` excepted; all else goes
    to the network as it is. Of the input's `axis` the first `channels` are the particle (None: all of it).
    """

    kwargs: dict[str, Any]
    input: str
    slots: int
    rowless: tuple[str, ...] = ()
    channels: int | None = None
    axis: int = 1

    @property
    def blocks(self) -> int:
        return len(self.kwargs[self.input]) // self.slots

    @property
    def x(self) -> Tensor:
        """(slots, ...) the particles as the network sees them."""
        own = self.kwargs[self.input][: self.slots]
        return own if self.channels is None else own.narrow(self.axis, 0, self.channels)

    @cached_property
    def rows(self) -> dict[str, Tensor]:
        """Every tensor that holds rows, by its name: the input first among them, nested ones as `name['inner']`."""
        return {name: leaf for name, leaf in self._leaves() if self._has_rows(name, leaf)}

    @property
    def cond(self) -> dict[str, Tensor]:
        """All rows but those of the particle and its timestep, particle-first: (slots, blocks, ...)."""
        rest = {name: leaf for name, leaf in self.rows.items() if name not in (self.input, "timestep")}
        if self.channels is not None and self.channels < (width := self.kwargs[self.input].shape[self.axis]):
            rest[BESIDE] = self.kwargs[self.input].narrow(self.axis, self.channels, width - self.channels)
        return {name: self._particle_first(leaf) for name, leaf in rest.items()}

    def copy(self) -> Call:
        """The same call in containers of its own: the pipeline may change its."""
        return replace(self, kwargs=self._with({}))

    def take(self, slots: Tensor) -> Call:
        """The same call for some of the slots, all their blocks."""
        index = torch.cat([slots + block * self.slots for block in range(self.blocks)])
        rows = {name: leaf[index.to(leaf.device)] for name, leaf in self.rows.items()}
        return replace(self, kwargs=self._with(rows), slots=len(slots))

    def put(self, x: Tensor, cond: dict[str, Tensor], timestep: Tensor | None = None) -> dict[str, Any]:
        """Keyword arguments for other slots: input x (b, ...), the same for every block, and cond as in `cond`.

        cond may hold fewer blocks than the call, (b, 1, ...) for one branch of the guidance alone. `timestep`, or else
        the call's own, is repeated for the rows if the call has one for each.
        """
        rows = {name: leaf.transpose(0, 1).flatten(0, 1) for name, leaf in cond.items()}
        own = torch.cat([x] * blocks_of(cond, self.blocks)).to(self.kwargs[self.input].dtype)
        beside = [rows.pop(BESIDE)] if BESIDE in rows else []
        given = self.kwargs["timestep"]
        told = given if timestep is None else timestep
        if given.ndim > 0:
            told = told.reshape(-1)[:1].expand(len(own))
        return self._with({**rows, self.input: torch.cat([own, *beside], self.axis), "timestep": told})

    def with_free(self, free: Call) -> Call:
        """This call of the conditional branch and that of the unconditional one, as one call of two blocks."""
        mine, theirs = dict(self._leaves()), dict(free._leaves())
        pairs = {name: (theirs[name], mine[name]) for name in {**free.rows, **self.rows}}
        rows = {name: torch.cat([leaf.expand(self.slots, *leaf.shape[1:]) for leaf in pairs[name]]) for name in pairs}
        return replace(self, kwargs=self._with(rows))

    def agrees(self, source: Tensor) -> bool:
        """Whether every slot really equals the slot that `source` names for it."""
        leaves = [self._particle_first(leaf) for leaf in self.rows.values()]
        return all(torch.equal(leaf[source.to(leaf.device)], leaf) for leaf in leaves)

    def _leaves(self) -> list[tuple[str, Any]]:
        return [(_name(path), leaf) for path, leaf in tree_flatten_with_path(self.kwargs)[0]]

    def _has_rows(self, name: str, leaf: Any) -> bool:
        tensor = isinstance(leaf, Tensor) and leaf.ndim > 0 and name not in self.rowless
        return tensor and len(leaf) == len(self.kwargs[self.input])

    def _particle_first(self, leaf: Tensor) -> Tensor:
        return leaf.unflatten(0, (self.blocks, self.slots)).transpose(0, 1)

    def _with(self, rows: dict[str, Tensor]) -> dict[str, Any]:
        leaves = [rows.get(name, leaf) for name, leaf in self._leaves()]
        return tree_unflatten(leaves, tree_flatten(self.kwargs)[1])


def blocks_of(cond: dict[str, Tensor], otherwise: int) -> int:
    """How many blocks a cond (b, blocks, ...) holds; `otherwise` if it holds nothing."""
    return next((leaf.shape[1] for leaf in cond.values()), otherwise)


def _name(path: tuple) -> str:
    return str(path[0].key) + keystr(path[1:])


def named(network: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a module, the positional ones put under their names."""
    plain = getattr(network, "_orig_mod", network)  # a compiled module hides the names
    return {**dict(zip([*inspect.signature(type(plain).forward).parameters][1:], args)), **kwargs}


@dataclass(frozen=True)
class Plan:
    """How to evaluate a call.

    batches  slots to evaluate, batch by batch
    back     for every slot its place among the slots so evaluated
    source   for every slot the slot whose evaluation it shares
    """

    batches: list[Tensor]
    back: Tensor
    source: Tensor


def plan(label: Tensor, n: int, exact: bool, chunk: int | None = None) -> Plan:
    """Slots of one label are evaluated once: in batches of `chunk`, or if `exact` of one slot a prompt; None: in one.

    In exact batches row p belongs to prompt p, as in the plain call; a prompt with fewer distinct slots than another
    repeats its first, and the repetition is paid for.
    """
    keep, back = first_of(label)
    if not exact:
        return Plan(list(keep.split(chunk or len(keep))), back, keep[back])
    mine = [keep[keep // n == prompt] for prompt in range(len(label) // n)]
    width = max(len(slots) for slots in mine)
    table = torch.stack([torch.cat([slots, slots[:1].expand(width - len(slots))]) for slots in mine])
    place = torch.full((len(label),), -1)
    for batch in reversed(range(width)):  # backwards, so that a repeated slot is found where it first stands
        place[table[:, batch]] = batch * len(mine) + torch.arange(len(mine))
    return Plan(list(table.T), place[keep][back], keep[back])


def evaluate(act: Callable[[Call], Any], call: Call, how: Plan) -> Any:
    """The network's output for all slots, evaluated by plan: a tree of (blocks * slots, ...) tensors."""
    outputs = [tree_flatten(act(call.take(slots))) for slots in how.batches]
    merged = [_merge(call.blocks, leaves, how.back) for leaves in zip(*(leaves for leaves, _ in outputs))]
    return tree_unflatten(merged, outputs[0][1])


def _merge(blocks: int, parts: tuple[Tensor, ...], back: Tensor) -> Tensor:
    slots = torch.cat([part.unflatten(0, (blocks, -1)) for part in parts], dim=1)
    return slots[:, back.to(slots.device)].flatten(0, 1)
