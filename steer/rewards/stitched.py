"""A stitched tower: latents go straight into the upper layers of a CLIP's image tower, through one linear map."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from steer.rewards.base import Reward
from steer.rewards.border import checked
from steer.rewards.cheap import BATCH, patches
from steer.rewards.clip import ClipScore


@dataclass(frozen=True)
class View:
    """What a layer's tokens see of the latents: each its cell and `reach` more to each side; a class token, the mean.

    grid     (rows, columns) of the layer's tokens; latents are resized to the next multiple of it where they are none
    leading  class tokens before those of the grid, 0 or 1
    """

    grid: tuple[int, int]
    leading: int
    reach: int

    def __call__(self, latents: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, leading + rows columns, m). Raises ValueError for latents of other proportions."""
        (h, w), (rows, columns) = latents.shape[-2:], self.grid
        if h * columns != w * rows:
            raise ValueError(
                f"latents of {h} x {w} under a tower whose layer has {rows} x {columns} tokens: expected the same "
                "proportions; the tower would see a part of the picture, or see it squeezed."
            )
        stride = -(-h // rows)
        if h != stride * rows:
            latents = F.interpolate(latents, (stride * rows, stride * columns), mode="bilinear", antialias=True)
        seen = patches(latents.float(), self.reach, stride)
        if not self.leading:
            return seen
        m = seen.shape[-1]
        return torch.cat([F.pad(seen.mean(1, keepdim=True), (m, 0)), F.pad(seen, (0, m))], 1)


class Affine(nn.Module):
    """a_p = f_p W + b_p: one matrix for all tokens p, and a constant for each."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.float(), False), nn.Parameter(bias.float(), False)

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias


class Sums:
    """What the least squares of one layer need of any number of pictures: sums in float64, no activations."""

    def __init__(self, view: View):
        self.view, self.count = view, 0
        self.f = self.a = self.ff = self.fa = self.aa = torch.zeros(())

    def add(self, latents: Tensor, activations: Tensor) -> None:
        f, a = self.view(latents).double(), activations.double()
        self.count += len(f)
        self.f, self.a = self.f + f.sum(0), self.a + a.sum(0)
        f, a = f.flatten(0, 1), a.flatten(0, 1)
        self.ff, self.fa, self.aa = self.ff + f.T @ f, self.fa + f.T @ a, self.aa + a.square().sum()

    def solve(self, ridge: float) -> tuple[Affine, float]:
        """The map, and its residual |F W + b - A|^2 / |A|^2. Raises ValueError for fewer equations than unknowns."""
        unknowns = self.ff.shape[0] // (1 + self.view.leading)
        equations = (self.count - 1) * (1 if self.view.leading else len(self.f))
        if equations < unknowns:
            raise ValueError(
                f"{self.count} pictures give {equations} equations for {unknowns} unknowns: expected at least as "
                "many; give more pictures, a smaller reach, or a lower layer."
            )
        f, a = self.f / self.count, self.a / self.count  # each token's means: what is left has no constant
        ff, fa = self.ff - self.count * f.T @ f, self.fa - self.count * f.T @ a
        weight = torch.linalg.solve(ff + ridge * ff.diagonal().mean() * torch.eye(len(ff)).to(ff), fa)
        left = self.aa - self.count * a.square().sum() - 2 * (weight * fa).sum() + (weight * (ff @ weight)).sum()
        return Affine(weight, a - f @ weight), float(left.clamp_min(0) / self.aa)


class StitchedTower(nn.Module):
    """Latents (b, c, h, w) -> unit embeddings (b, d): a linear map to one layer's activations, the layers above it."""

    def __init__(self, view: View, stitch: Affine, above: nn.Module):
        super().__init__()
        self.view, self.stitch, self.above = view, stitch, above

    def forward(self, latents: Tensor) -> Tensor:
        tokens = self.stitch(self.view(latents))
        return F.normalize(self.above(tokens if self.view.leading else tokens.mT.unflatten(2, self.view.grid)), dim=-1)


class Pool(nn.Module):
    """The end of a ViT, tokens -> embedding: a tower that has given its blocks away."""

    def __init__(self, tower: Any):
        super().__init__()
        tower.transformer = nn.Identity()
        self.tower = tower

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tower._pool(tokens)[0] @ self.tower.proj


@dataclass(frozen=True)
class StitchedClip(Reward):
    """cos(tower(latents), text embedding), in [-1, 1]: a CLIP score of latents that decodes nothing; see `stitch`.

    clip      whose texts, and whose image tower's blocks above `layer`
    layer     blocks 1 to `layer`, and what comes before them, are one linear map
    residual  |F W + b - A|^2 / |A|^2 of that map, on what it was fitted to
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

    F are cells of latents and a constant for each token, A_k the outputs of block k; the ridge is relative to the mean
    square of F.

    clip      its image tower is a ViT or a ResNet of open_clip
    latents   (n, c, h, w), as a pipeline's network sees them, of a few hundred pictures at least
    pictures  (n, 3, H, W) in [0, 1], which they stand for: decoded by the autoencoder whose pictures are scored
    layer     k, from 1; None for the arg min
    reach     latent pixels that a token sees beyond its own cell

    Raises ValueError for another tower, for pairs that do not match or are too few, and for a layer that is not there.
    """
    latents, pictures = _pairs(latents, pictures)
    if not ridge > 0:
        raise ValueError(f"ridge = {ridge}: expected above 0, such as 1e-3; it keeps the solution unique.")
    tower = clip.image_tower(latents.device)
    count = len(blocks(tower))
    if layer is not None and layer not in range(1, count + 1):
        raise ValueError(f"layer = {layer}: expected 1 to {count}, the blocks of this tower, or None for the best.")
    sums = _sums(clip, latents, pictures, range(1, count + 1) if layer is None else [layer], reach)
    fits = {k: one.solve(ridge) for k, one in sums.items()}
    best = min(fits, key=lambda k: fits[k][1])
    return StitchedClip(clip, best, fits[best][1], StitchedTower(sums[best].view, fits[best][0], above(tower, best)))


def tune(
    stitched: StitchedClip, latents: Tensor, pictures: Tensor, steps: int = 300, rate: float = 1e-3, seed: int = 0
) -> StitchedClip:
    """Light fine-tuning of the map and of the blocks above it, by Adam: 1 - cos(stitched, true image embedding).

    Batches of 64 of the pairs, drawn by `seed`; the rate falls linearly. Returns a new reward. Raises ValueError for
    pairs that do not match.
    """
    latents, pictures = _pairs(latents, pictures)
    with torch.no_grad():
        true = torch.cat([stitched.clip.embed_images(part) for part in pictures.split(BATCH)])
    tower = copy.deepcopy(stitched.tower).requires_grad_()
    optimiser = torch.optim.Adam(tower.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, steps)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in tqdm(range(steps), desc="tune", delay=3, leave=False):
            which = torch.randint(len(latents), (64,), generator=generator)
            loss = 1 - (tower(latents[which]) * true[which]).sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return replace(stitched, tower=tower.requires_grad_(False), tuned=stitched.tuned + steps)


def blocks(tower: Any) -> list[nn.Module]:
    """Blocks 1, 2, ... of an open_clip image tower. Raises ValueError where it is neither ViT nor ResNet."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    if isinstance(tower, VisionTransformer):
        return list(tower.transformer.resblocks)
    if isinstance(tower, ModifiedResNet):
        return [block for part in (tower.layer1, tower.layer2, tower.layer3, tower.layer4) for block in part]
    raise ValueError(f"the image tower is a {type(tower).__name__}; expected open_clip's VisionTransformer or ResNet.")


def above(tower: Any, layer: int) -> nn.Module:
    """A copy of what comes after block `layer`: its output -> the embedding."""
    own = copy.deepcopy(tower)
    return nn.Sequential(*blocks(own)[layer:], own.attnpool if hasattr(own, "attnpool") else Pool(own))


def _sums(clip: ClipScore, latents: Tensor, pictures: Tensor, layers: Any, reach: int) -> dict[int, Sums]:
    """Run the whole tower on all pictures, a batch at a time, and take down what each layer's fit needs."""
    tower, found, seen = clip.image_tower(latents.device), {}, {}
    with ExitStack() as hooks:
        for k in layers:
            keep = lambda module, given, out, k=k: seen.__setitem__(k, out)  # noqa: E731
            hooks.enter_context(blocks(tower)[k - 1].register_forward_hook(keep))
        for z, x in zip(latents.split(BATCH), pictures.split(BATCH)):
            clip.embed_images(x)
            for k, out in seen.items():
                grid, leading = (out.shape[-2:], 0) if out.dim() == 4 else (tower.grid_size, 1)
                one = found.setdefault(k, Sums(View(tuple(grid), leading, reach)))
                one.add(z, out if leading else out.flatten(2).mT)
    return found


def _pairs(latents: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    pictures, _ = checked(pictures, [""] * len(pictures))
    if latents.dim() != 4 or len(latents) != len(pictures):
        raise ValueError(
            f"latents {tuple(latents.shape)} with {len(pictures)} pictures; expected (n, c, h, w), one a picture."
        )
    return latents.detach().float(), pictures.detach()
