"""What inpainting brings back at every step, particle by particle."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from steer.diffusion.pipelines.references import rows_of, spread


class Fill:
    """The picture outside of the mask, and the noise that the pipeline puts on it: that of a particle's start.

    A network with the mask among its input needs no such thing; then there is no picture.
    """

    def __init__(self, n: int):
        self.n, self.noise, self.picture, self.mask = n, None, None, None

    def note(self, call: dict[str, Any], results: list[Any]) -> None:
        """Takes what `prepare_latents`, so called, returned beside the latents."""
        self.noise = self.picture = None
        if call.get("return_noise"):
            self.noise = results[0] = results[0].clone()  # ours to gather, not the caller's latents
        if call.get("return_image_latents"):
            self.picture = results[1]

    def masks(self, original: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """`prepare_mask_latents`: all particles of an image get its mask and its masked picture, encoded once.

        Of a list of generators the first of each image samples the encoder's posterior, as in the plain call.
        """
        call = inspect.signature(original).bind(*args, **kwargs)
        rows = rows_of(call.arguments)
        generator, seen = (call.arguments[name] for name in ("generator", "masked_image"))
        if isinstance(generator, list):
            call.arguments["generator"] = generator[:: self.n]
        masks, pictures = original(*call.args, **call.kwargs)
        masks = spread(masks, len(call.arguments["mask"]), rows, self.n)
        self.mask = masks[:rows]
        return masks, None if pictures is None else spread(pictures, len(seen), rows, self.n)

    def rows(self) -> dict[str, Tensor]:
        """The noise of every particle, for a gather."""
        return {} if self.noise is None else {"first noise": self.noise}

    def take(self, rows: dict[str, Tensor]) -> None:
        """Puts the gathered noise back, out of `rows`, where the pipeline will find it."""
        if self.noise is not None:
            self.noise.copy_(rows.pop("first noise"))

    def finished(self, x: Tensor) -> Tensor:
        """The finished latents with the picture outside of the mask, as the pipeline is about to return them."""
        return x if self.picture is None or self.mask is None else (1 - self.mask) * self.picture + self.mask * x
