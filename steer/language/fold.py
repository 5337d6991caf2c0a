"""A steering vector inside the weights: no hook, no cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steer.language.record import recording, run
from steer.language.steering import steering
from steer.language.tower import Site, module_at, resolved
from steer.language.vectors import SteeringVector, fitted_to


@contextmanager
def folded(model: Any, vector: SteeringVector, strength: float) -> Iterator[None]:
    """h + strength v behind each block, as a bias of the last matrix of its MLP: the same as "add" with
    relative=False, keep_norm=False, at every position, at no cost. On exit the biases are what they were.

    Raises ValueError where the MLP's output does not reach the stream unchanged (a norm or an expert router behind it),
    which is measured on two tokens, and for a vector that sits elsewhere than behind blocks.
    """
    fitted = fitted_to(vector, model)
    if others := [str(place) for place in fitted.sites if place.part != "block"]:
        raise ValueError(f"sites {others}: expected blocks alone; fold what sits elsewhere into weights yourself.")
    _checked(model, fitted, strength)
    with ExitStack() as undo:
        for place, v in fitted.directions.items():
            _shift(undo, _last(model, place), strength * v)
        yield


def _last(model: Any, place: Site) -> Any:
    mlp = module_at(model, Site(resolved(model, place).layer, "mlp"))
    return [m for m in mlp.modules() if isinstance(getattr(m, "weight", None), Tensor) and m.weight.ndim == 2][-1]


def _shift(undo: ExitStack, layer: Any, v: Tensor) -> None:
    """Add v to a layer's bias; on exit put back the parameter that was there, or none."""
    before = layer.bias
    v = v.to(layer.weight.device, layer.weight.dtype)
    layer.bias = nn.Parameter(v if before is None else before.detach() + v, requires_grad=False)
    undo.callback(setattr, layer, "bias", before)


def _checked(model: Any, vector: SteeringVector, strength: float) -> None:
    tokens = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    pushed = partial(steering, model, vector, strength, keep_norm=False, relative=False)
    with torch.no_grad(), recording(model, vector.sites) as plain, pushed():
        run(model, tokens)
    with ExitStack() as undo, torch.no_grad(), recording(model, vector.sites) as shifted:
        for place, v in vector.directions.items():
            _shift(undo, _last(model, place), strength * v)
        run(model, tokens)
    for place in vector.sites:
        # hooks of `recording` come first: the plain states are those before their own push
        wanted = plain[place][-1] + strength * vector.directions[place].to(plain[place][-1])
        apart = (shifted[place][-1] - wanted).norm() / wanted.norm()
        if not apart < 100 * torch.finfo(wanted.dtype).eps:
            raise ValueError(f"site {place}: folded is not the same as added (off by {apart:.1e}); use `steering`.")
