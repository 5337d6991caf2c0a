"""Laws and oracles of the gradients methods."""

from __future__ import annotations

from methods.method import Method

METHODS: dict[str, Method] = {}
