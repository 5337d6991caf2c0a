"""What training changed, as a small file: it can be put on a model, taken off bit for bit, and added to others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from steer.draw.save import written


@dataclass(frozen=True, eq=False)
class Difference:
    """Changes of parameters by name: values, and their flat indices where not all of the parameter changed."""

    values: Mapping[str, Tensor]
    indices: Mapping[str, Tensor]

    @classmethod
    def between(cls, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Difference:
        """after - before, of the entries that are not the same. Put on `before` it gives `after` to a rounding."""
        values, indices = {}, {}
        for name, old in before.items():
            change = (after[name] - old).flatten()
            where = change.nonzero().flatten()
            values[name] = change[where]
            if len(where) < len(change):
                indices[name] = where
        return cls(values, indices)

    @property
    def count(self) -> int:
        return sum(len(value) for value in self.values.values())

    @torch.no_grad()
    def apply(self, model: nn.Module) -> Callable[[], None]:
        """Add the difference to a model's parameters; returns what takes it off again.

        That writes the old values back, since floating-point addition does not undo itself; take several off in
        reverse order. Raises ValueError for a name that the model has not, and for another size.
        """
        parameters = dict(model.named_parameters())
        self._fits({name: parameter.shape for name, parameter in parameters.items()})
        kept = {name: self._change(parameters[name], name, self.values[name], add=True) for name in self.values}

        @torch.no_grad()
        def remove() -> None:
            for name, old in kept.items():
                self._change(parameters[name], name, old, add=False)

        return remove

    def tensor(self, name: str, like: Tensor) -> Tensor:
        """The change of one parameter, whole; zeros for one that did not change."""
        whole = torch.zeros_like(like)
        if name in self.values:
            self._change(whole, name, self.values[name], add=True)
        return whole

    def __add__(self, other: Difference) -> Difference:
        """The sum: of a language's difference and a task's, say (LT-SFT)."""
        values, indices = {}, {}
        for name in {**self.values, **other.values}:
            parts = [each for each in (self, other) if name in each.values]
            sizes = [len(each.values[name]) for each in parts]
            where = torch.cat([each.indices.get(name, torch.arange(n)) for each, n in zip(parts, sizes)])
            place, which = where.unique(return_inverse=True)
            added = torch.cat([each.values[name] for each in parts])
            values[name] = added.new_zeros(len(place)).index_add(0, which, added)
            if all(name in each.indices for each in parts):
                indices[name] = place
        return Difference(values, indices)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, complete or not at all. Raises ValueError for another suffix."""
        from safetensors.torch import save

        if (path := Path(path)).suffix != ".safetensors":
            raise ValueError(f"{path.name}: expected a name that ends in .safetensors.")
        tensors = {f"value {name}": value.contiguous() for name, value in self.values.items()}
        tensors |= {f"index {name}": index for name, index in self.indices.items()}
        with written(path) as part:
            part.write_bytes(save(tensors))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Difference:
        """Read one. Raises ValueError for a file that is none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is no difference file: {error}.") from error
        kinds = {kind: {k.split(" ", 1)[-1]: t for k, t in tensors.items() if k.startswith(kind)} for kind in KINDS}
        if sum(map(len, kinds.values())) != len(tensors):
            raise ValueError(f"{path} is no difference file: it holds {sorted(tensors)[:4]}.")
        return cls(kinds["value "], kinds["index "])

    def _change(self, tensor: Tensor, name: str, value: Tensor, add: bool) -> Tensor:
        """Add to, or set, the entries of this name; returns what they were."""
        where, flat = self.indices.get(name, slice(None)), tensor.flatten()
        old = flat[where].clone()
        flat[where] = old + value.to(old) if add else value
        tensor.copy_(flat.view_as(tensor))
        return old

    def _fits(self, shapes: Mapping[str, torch.Size]) -> None:
        for name, value in self.values.items():
            size = shapes[name].numel() if name in shapes else 0
            least = 1 + int(self.indices[name].max()) if name in self.indices and len(value) else len(value)
            if name not in shapes or least > size or (name not in self.indices and least != size):
                raise ValueError(f"a difference of {least} entries of {name}, and the model has {size} of that name.")


KINDS = ("value ", "index ")
