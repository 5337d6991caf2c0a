"""What every method brings with it: a law that it obeys exactly and, where one exists, an oracle that it matches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from steer import Controller

Check = Callable[[Callable[..., Controller]], None]
"""Takes the method, asserts; called with nothing else, so that a row of the table is the whole test."""


@dataclass(frozen=True)
class Method:
    """A method under test: `make(**options)` gives its controller."""

    make: Callable[..., Controller]
    law: Check
    oracle: Check | None = None
