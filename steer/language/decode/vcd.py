"""VCD: what a vision-language model says of a picture, less what it says when it hardly sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.language.decode.contrast import Contrast
from steer.language.decode.decoder import Decoder
from steer.language.decode.stream import Call, Forward, Stream, cache_name


@dataclass(frozen=True, eq=False)
class vcd(Decoder):
    """(1 + beta) log p(y | picture) - beta log p(y | noised picture) where p(y | picture) is plausible, 2311.16922.

    What is said of a picture that can hardly be seen is the model's habit, and is taken off. As in `contrastive`,
    plausible are tokens with p >= alpha max p; steering that is open acts on both halves.

    pictures  what the processor made of the pictures of the call, their pixels noised:
              `{"pixel_values": noised(pixels, 500, generator)}`, and "image_grid_thw" if it made one

    Raises ValueError for beta < 0, alpha outside [0, 1], and pictures without pixel_values.
    """

    pictures: Mapping[str, Tensor]
    beta: float = 1.0
    alpha: float = 0.1

    def __post_init__(self):
        if not self.beta >= 0 or not 0 <= self.alpha <= 1:
            raise ValueError(f"beta = {self.beta}, alpha = {self.alpha}: expected beta >= 0 and 0 <= alpha <= 1.")
        if "pixel_values" not in self.pictures:
            raise ValueError(f"pictures {sorted(self.pictures)}: expected pixel_values, as the processor makes them.")

    @contextmanager
    def open(self, call: Call) -> Iterator[Stream]:
        from transformers import DynamicCache

        # `generate` has encoded the pictures of the call before
        given = {name: value for name, value in call.kwargs.items() if name != "mm_encoder_outputs"}
        fresh = {cache_name(call.model): DynamicCache(config=call.model.config.get_text_config())}
        noisy = Forward(call.model, call.ids, {**given, **self.pictures, **fresh}, call.config, call.ledger)
        yield Contrast(Forward.of(call), noisy, self)


def noised(pixels: Tensor, step: int, generator: torch.Generator) -> Tensor:
    """sqrt(a) x + sqrt(1 - a) e, a = prod_{t <= step} (1 - b_t): the diffusion of a picture, of any shape.

    b rises from 1e-5 to 5e-3 along a sigmoid over 1000 steps; the paper takes step 500. Raises ValueError for a step
    outside 0 to 999.
    """
    if not 0 <= step < 1000:
        raise ValueError(f"step {step}: expected 0 to 999.")
    b = torch.linspace(-6, 6, 1000, dtype=torch.float64).sigmoid() * (5e-3 - 1e-5) + 1e-5
    a = float((1 - b)[: step + 1].prod())
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device, pixels.dtype)
    return a**0.5 * pixels + (1 - a) ** 0.5 * noise
