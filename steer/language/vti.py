"""VTI: less hallucination by a push of both towers of a vision-language model (arXiv 2410.15778)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steer.language.edits import Add, kept, norm
from steer.language.extract.directions import pca
from steer.language.hooks import Change, hooked
from steer.language.record import activations, norms
from steer.language.tower import Site, tower
from steer.language.vectors import SteeringVector


def textual(model: Any, faithful: Mapping[str, Tensor], invented: Mapping[str, Tensor]) -> SteeringVector:
    """VTI's direction of the text tower, from invented captions to faithful ones.

    At the last token, behind all blocks at once: d_i = h(faithful_i) - h(invented_i), v = mean_i d_i + the first
    principal axis of the d_i, its sign that of the mean. As there, v is added behind the MLPs: its sites are
    "layer.mlp", and `steering(model, v, 0.1 * alpha)` is the paper's |h| norm(h / |h| + 0.1 alpha v / |v|), alpha 0.9.

    faithful, invented  inputs of a processor, left-padded: row by row the same picture and question, another caption

    Raises ValueError for fewer than 2 pairs, and what `activations` does.
    """
    layers = range(len(tower(model).blocks))
    found = [activations(model, side, layers) for side in (faithful, invented)]
    positive, negative = (torch.stack([states[Site(k)] for k in layers], 1) for states in found)
    v = _axis((positive - negative).flatten(1)).view(len(layers), -1)
    sites = [Site(k, "mlp") for k in layers]
    sizes = norms(model, faithful, sites)
    about = {"method": "vti", "pairs": str(len(positive))}
    return SteeringVector({place: row.cpu() for place, row in zip(sites, v)}, sizes, about)


@torch.no_grad()
def visual(
    model: Any,
    pictures: Mapping[str, Tensor],
    generator: torch.Generator,
    copies: int = 50,
    ratio: float = 0.99,
) -> dict[int, Tensor]:
    """VTI's directions of the vision tower: layer -> (patches, width), one for each place in a picture.

    Features that stay when patches vanish are stable: d_i = mean over copies of h(copy) - h(picture), where a share
    `ratio` of a copy's patches has the picture's mean colour; v = mean_i d_i + the first principal axis of the d_i.

    pictures   what a processor makes of at least 2 pictures of one size: pixel_values, image_grid_thw if it gives one
    generator  draws the patches

    Raises ValueError for fewer than 2 pictures, and for a ratio outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio {ratio}: expected a share of patches, 0 to 1.")
    layers = range(len(tower(eyes(model)).blocks))
    pixels = pictures["pixel_values"]
    plain = _seen(model, pictures, layers)
    mean = torch.zeros_like(plain)
    for _ in range(copies):
        masked = _masked(model, pixels, len(plain), ratio, generator)
        mean += _seen(model, {**pictures, "pixel_values": masked}, layers) / copies
    deltas = (mean - plain).permute(2, 0, 1, 3)  # patches first: each has its own axis, over all layers
    v = torch.stack([_axis(each.flatten(1)).view(len(layers), -1) for each in deltas], 1)
    return dict(enumerate(v))


@contextmanager
def seeing(model: Any, directions: Mapping[int, Tensor], strength: float) -> Iterator[None]:
    """While it is open, the vision tower is pushed: behind the MLP of each layer |h| norm(h / |h| + strength v / |v|).

    The paper's strength is 0.1 * 0.9. Compose it with `steering` for the text tower. Raises ValueError for a picture
    with another number of patches than the directions have.
    """

    def push(direction: Tensor) -> Change:
        def change(hidden: Tensor) -> Tensor | None:
            if not strength:
                return None
            if hidden.numel() % direction.numel():
                raise ValueError(f"states {tuple(hidden.shape)} for directions {tuple(direction.shape)} of a picture.")
            tokens = hidden.reshape(-1, *direction.shape)  # some towers lay all pictures end to end
            v = direction.to(hidden.device, hidden.dtype)
            return kept(Add()(tokens, v, strength), norm(tokens)).view_as(hidden)

        return change

    with hooked(eyes(model), [(Site(layer, "mlp"), push(v)) for layer, v in directions.items()], flat=True):
        yield


def eyes(model: Any) -> Any:
    """The vision tower: to the engine, a model of its own. Raises ValueError for a model without one."""
    found = model.get_encoder(modality="image")
    if found is model or not hasattr(model, "get_image_features"):
        raise ValueError(f"{type(model).__name__} has no vision tower.")
    return found


def _axis(deltas: Tensor) -> Tensor:
    """(n, d) -> mean + first principal axis, (d,)."""
    return deltas.mean(0) + pca(deltas, torch.zeros_like(deltas), centred=True)


def _seen(model: Any, pictures: Mapping[str, Tensor], layers: Iterable[int]) -> Tensor:
    """States of the vision tower, (pictures, layers, patches, width)."""
    pixels, grid = pictures["pixel_values"], pictures.get("image_grid_thw")
    count = pixels.shape[:-3].numel() if grid is None else len(grid)
    found: list[Tensor] = []

    def note(hidden: Tensor) -> None:
        found.append(hidden.float().reshape(count, -1, hidden.shape[-1]))

    with hooked(eyes(model), [(Site(layer), note) for layer in layers], flat=True):
        model.get_image_features(**pictures)
    return torch.stack(found, 1)


def _masked(model: Any, pixels: Tensor, count: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Pixels with patches, drawn at random, in the mean colour of their picture."""
    if pixels.ndim == 2:  # (patches of all pictures, channels of a patch)
        parts = pixels.view(count, -1, 3, pixels.shape[1] // 3)
        hidden = (torch.rand(parts.shape[:2], generator=generator) < ratio).to(pixels.device)
        return torch.where(hidden[..., None, None], parts.mean((1, 3), keepdim=True), parts).view_as(pixels)
    size = model.config.vision_config.patch_size
    high, wide = (size, size) if isinstance(size, int) else size
    height, width = pixels.shape[-2:]
    hidden = torch.rand(*pixels.shape[:-3], 1, height // high, width // wide, generator=generator) < ratio
    hidden = hidden.repeat_interleave(high, -2).repeat_interleave(wide, -1).to(pixels.device)
    return torch.where(hidden, pixels.mean((-1, -2), keepdim=True), pixels)
