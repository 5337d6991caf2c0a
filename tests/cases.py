"""Every method of the image half, with the law that it obeys and the oracle that it matches: one row each."""

from __future__ import annotations

from methods import compose, edit, gradients, guidance, search, style
from methods.method import Method

METHODS: dict[str, Method] = {
    **search.METHODS,
    **gradients.METHODS,
    **guidance.METHODS,
    **style.METHODS,
    **edit.METHODS,
    **compose.METHODS,
}
