"""A steering vector is data: a direction for each site, and how it came about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import Any

from torch import Tensor

from steer.language.tower import Site, resolved, site, tower, width_at


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """Site -> direction (width,), float32; an int names the output of that decoder block.

    norms       site -> median norm of the states there, on the data that the directions come from. A strength that is
                relative to the norm of a state needs it: a token whose norm is above `SINK` times it is an attention
                sink, which no one wants to push
    provenance  what made it: model, revision, method, data, ... as text

    `2 * v`, `-v`, `v + w`, `v - w` act on directions, and a sum has the sites of both. Raises ValueError for
    directions that are not vectors, that are not finite, or of which there are none.
    """

    directions: Mapping[Site, Tensor]
    norms: Mapping[Site, float] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        directions = {site(place): v.detach().float() for place, v in self.directions.items()}
        if not directions:
            raise ValueError("a steering vector without directions: expected at least one site.")
        for place, v in directions.items():
            if v.ndim != 1 or not v.isfinite().all():
                raise ValueError(f"site {place}: a direction {tuple(v.shape)}, expected finite numbers (width,).")
        norms = {site(place): float(size) for place, size in self.norms.items()}
        for name, value in (("directions", directions), ("norms", norms), ("provenance", dict(self.provenance))):
            object.__setattr__(self, name, MappingProxyType(value))

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self.directions)

    def __getitem__(self, places: Site | int | str | Iterable[Site | int | str]) -> SteeringVector:
        """The vector at some of its sites. Raises ValueError for a site that it does not have."""
        asked = [site(p) for p in ([places] if isinstance(places, (Site, int, str)) else places)]
        if missing := [str(place) for place in asked if place not in self.directions]:
            raise ValueError(f"sites {missing}: this vector has {[str(place) for place in self.sites]}.")
        return SteeringVector({place: self.directions[place] for place in asked}, self.norms, self.provenance)

    def map(self, change: Callable[[Tensor], Tensor]) -> SteeringVector:
        """Every direction changed."""
        return SteeringVector({s: change(v) for s, v in self.directions.items()}, self.norms, self.provenance)

    def normalized(self) -> SteeringVector:
        """Every direction with norm 1."""
        return self.map(lambda v: v / v.norm())

    def __mul__(self, factor: float) -> SteeringVector:
        return self.map(lambda v: factor * v) if isinstance(factor, Real) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> SteeringVector:
        return -1.0 * self

    def __add__(self, other: SteeringVector) -> SteeringVector:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        both = dict(self.directions)
        for place, v in other.directions.items():
            if place in both and both[place].shape != v.shape:
                raise ValueError(f"site {place}: widths {len(both[place])} and {len(v)} cannot be added.")
            both[place] = both[place] + v if place in both else v
        return SteeringVector(both, {**other.norms, **self.norms}, {**other.provenance, **self.provenance})

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self + -other if isinstance(other, SteeringVector) else NotImplemented

    def cosine(self, other: SteeringVector) -> dict[Site, float]:
        """The cosine between both, at every site that both have."""
        shared = [place for place in self.sites if place in other.directions]
        a, b = self.normalized(), other.normalized()
        return {place: float(a.directions[place] @ b.directions[place]) for place in shared}


def fitted_to(vector: SteeringVector, model: Any) -> SteeringVector:
    """The vector with its layers counted from the first.

    Raises ValueError for a layer that the model does not have, for directions of another width than its states, and for
    a vector that says that it was fitted to another number of layers.
    """
    count = vector.provenance.get("blocks", "")
    if count and count != str(len(tower(model).blocks)):
        raise ValueError(
            f"a vector of a model with {count} layers, and {type(model).__name__} has {len(tower(model).blocks)}: this "
            "vector comes from another model."
        )
    for place, v in vector.directions.items():
        width = width_at(model, place)
        if len(v) != width:
            raise ValueError(
                f"site {place}: a direction of width {len(v)}, and {type(model).__name__} has states of width {width}: "
                "this vector comes from another model."
            )
    return SteeringVector(
        {resolved(model, place): v for place, v in vector.directions.items()},
        {resolved(model, place): size for place, size in vector.norms.items()},
        vector.provenance,
    )
