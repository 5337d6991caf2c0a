"""A CLIP score of latents: they go straight into the upper blocks of its image tower, through one linear map."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from steer.rewards.base import Reward
from steer.rewards.border import checked
from steer.rewards.cheap import BATCH
from steer.rewards.clip import ClipScore
from steer.rewards.towers import Affine, Sums, View, above, blocks

LEFT_OUT = 8  # one pair of so many tells how good a fit to the others is


class StitchedTower(nn.Module):
    """Latents (b, c, h, w) -> unit embeddings (b, d): a linear map to one layer's activations, the blocks above it."""

    def __init__(self, view: View, stitch: Affine, above: nn.Module):
        super().__init__()
        self.view, self.stitch, self.above = view, stitch, above

    def forward(self, latents: Tensor) -> Tensor:
        return F.normalize(self.above(self.view.activations(self.stitch(self.view(latents)))), dim=-1)


@dataclass(frozen=True)
class StitchedClip(Reward):
    """cos(tower(latents), text embedding), in [-1, 1]: a CLIP score that decodes nothing; made by `stitch`.

    clip      whose texts, and whose image tower's blocks above `layer`
    layer     blocks 1 to `layer`, and what comes before them, are one linear map
    residual  |F W + b - A|^2 / |A|^2 of that map, on pairs that it was not fitted to
    tuned     steps of `tune`
    """

    clip: ClipScore
    layer: int
    residual: float
    tower: StitchedTower = field(repr=False)
    tuned: int = 0
    differentiable = True
    needs_decode = False
    batch = property(lambda self: self.clip.batch)  # type: ignore[assignment]

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return (self.tower(images) * self.clip.embed_texts(prompts, images.device)).sum(-1)


@torch.no_grad()
def stitch(
    clip: ClipScore, latents: Tensor, pictures: Tensor, layer: int | None = None, reach: int = 1, ridge: float = 1e-3
) -> StitchedClip:
    """Model stitching (VIST3A, arXiv 2510.13454): the lower blocks of a CLIP's image tower become one map of latents.

        S_k = argmin |F S - A_k|^2 + ridge |S|^2,    k = argmin |F S_k - A_k|^2 / |A_k|^2

    F are cells of the latents, and a constant for each token; A_k is the output of block k. The map is fitted to seven
    pairs of eight, and k chosen by the eighth: on what was fitted a layer with more unknowns has an advantage.

    clip      its image tower is a ViT or a ResNet of open_clip, as `emoji-clip`'s
    latents   (n, c, h, w), as a pipeline's network sees them, of a few hundred pictures at least; for a preview also
              the clean estimates of early looks, which are blurred
    pictures  (n, 3, H, W) in [0, 1], which they stand for: as decoded, where decoded pictures are to be scored
    layer     k, from 1; None for the arg min. `tune` gains most where k is low
    reach     latent pixels that a token sees beyond its own cell
    ridge     in mean squares of F

    Raises ValueError for another tower, for pairs that do not match or are too few, for a layer that is not there, and
    for a reach or ridge out of range.

    >>> preview = tune(stitch(ClipScore(), latents, pictures), latents, pictures)
    >>> Steered(pipe, code(looking(ClipScore(), preview), block=1))("a red apple", n=8)
    """
    if not isinstance(clip, ClipScore):
        raise ValueError(f"{clip!r} cannot be stitched: expected a ClipScore, whose image tower is read.")
    latents, pictures = _pairs(latents, pictures)
    tower = clip.image_tower(latents.device)
    known = range(1, len(blocks(tower)) + 1)
    if layer is not None and layer not in known:
        raise ValueError(f"layer = {layer}: expected 1 to {known[-1]}, the blocks of this tower, or None for the best.")
    left_out = torch.arange(len(latents)) % LEFT_OUT == 0
    fitted, held = (
        _taken_down(clip, latents[part], pictures[part], known if layer is None else [layer], reach)
        for part in (~left_out, left_out)
    )
    linear = {k: sums.solve(ridge) for k, sums in fitted.items()}
    residual = {k: held[k].residual(linear[k]) for k in held}
    best = min(residual, key=residual.__getitem__)
    return StitchedClip(clip, best, residual[best], StitchedTower(fitted[best].view, linear[best], above(tower, best)))


def tune(
    stitched: StitchedClip, latents: Tensor, pictures: Tensor, steps: int = 300, rate: float = 1e-3, seed: int = 0
) -> StitchedClip:
    """Light fine-tuning, of the map and the blocks above it: Adam on 1 - cos(stitched, true embedding) of the pairs.

    Batches of 64, drawn by `seed`; the rate falls linearly to 0. Returns a new reward. Raises ValueError for pairs
    that do not match, and for no step.
    """
    latents, pictures = _pairs(latents, pictures)
    if steps < 1:
        raise ValueError(f"steps = {steps}: expected at least 1.")
    with torch.no_grad():
        true = torch.cat([stitched.clip.embed_images(part) for part in pictures.split(BATCH)])
    tower = copy.deepcopy(stitched.tower).requires_grad_()
    optimiser = torch.optim.Adam(tower.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for step in tqdm(range(steps), desc="tune", delay=3, leave=False):
            which = torch.randint(len(latents), (64,), generator=generator)
            loss = 1 - (tower(latents[which]) * true[which]).sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimiser.step()
    return replace(stitched, tower=tower.requires_grad_(False), tuned=stitched.tuned + steps)


def _taken_down(
    clip: ClipScore, latents: Tensor, pictures: Tensor, layers: Iterable[int], reach: int
) -> dict[int, Sums]:
    """Run the whole tower on the pictures, a batch at a time, and keep of each layer what its fit needs."""
    tower = clip.image_tower(latents.device)
    cut, put_out, sums = blocks(tower), {}, {}
    with ExitStack() as hooks:
        for k in layers:
            keep = lambda module, given, out, k=k: put_out.update({k: out})  # noqa: E731
            hooks.enter_context(cut[k - 1].register_forward_hook(keep))
        for z, x in zip(latents.split(BATCH), pictures.split(BATCH)):
            clip.embed_images(x)
            for k, out in put_out.items():
                sums.setdefault(k, Sums(View.of(tower, out, reach))).add(z, out)
    return sums


def _pairs(latents: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    pictures, _ = checked(pictures, [""] * len(pictures))
    if latents.dim() != 4 or len(latents) != len(pictures) or len(latents) < 2:
        raise ValueError(
            f"latents {tuple(latents.shape)} with {len(pictures)} pictures; expected (n, c, h, w), one a picture, and "
            "at least two."
        )
    return latents.detach().float(), pictures.detach().to(latents.device)
