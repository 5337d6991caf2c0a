"""open_clip image towers, cut above a block; and the least squares that bridge the cut from latents."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer.rewards.cheap import patches


def blocks(tower: Any) -> list[Any]:
    """Blocks 1, 2, ... of an open_clip image tower. Raises ValueError where it is neither ViT nor ResNet."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    if isinstance(tower, VisionTransformer):
        return list(tower.transformer.resblocks)
    if isinstance(tower, ModifiedResNet):
        return [block for part in (tower.layer1, tower.layer2, tower.layer3, tower.layer4) for block in part]
    raise ValueError(
        f"the image tower is a {type(tower).__name__}; expected open_clip's VisionTransformer or ModifiedResNet."
    )


def above(tower: Any, layer: int) -> nn.Sequential:
    """A copy of what comes after block `layer`: its output -> the embedding (b, d)."""
    own = copy.deepcopy(tower)
    rest = blocks(own)[layer:]
    return nn.Sequential(*rest, own.attnpool if hasattr(own, "attnpool") else Pool(own))


class Pool(nn.Module):
    """The end of a ViT, tokens -> embedding: the tower itself, which gives its blocks away."""

    def __init__(self, tower: Any):
        super().__init__()
        tower.transformer = nn.Identity()
        self.tower = tower

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tower._pool(tokens)[0] @ self.tower.proj


@dataclass(frozen=True)
class View:
    """What a layer's tokens see of the latents: each its cell, and `reach` more to each side; a class token, the mean.

    grid     (rows, columns) of tokens; latents are resized to the next multiple of it where they are none
    leading  class tokens before those of the grid, 0 or 1
    """

    grid: tuple[int, int]
    leading: int
    reach: int

    def __post_init__(self):
        if self.reach < 0:
            raise ValueError(f"reach = {self.reach}: expected 0 or more latent pixels.")

    def __call__(self, latents: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, leading + rows columns, m). Raises ValueError for latents of other proportions."""
        (h, w), (rows, columns) = latents.shape[-2:], self.grid
        if h * columns != w * rows:
            raise ValueError(
                f"latents of {h} x {w} for a layer of {rows} x {columns} tokens: expected the same proportions; the "
                "tower would see only a part of the picture."
            )
        stride = -(-h // rows)
        if h != stride * rows:
            latents = F.interpolate(latents, (stride * rows, stride * columns), mode="bilinear")
        seen = patches(latents.float(), self.reach, stride)
        if not self.leading:
            return seen
        m = seen.shape[-1]  # the class token has columns of its own
        return torch.cat([F.pad(seen.mean(1, keepdim=True), (m, 0)), F.pad(seen, (0, m))], 1)

    def tokens(self, activations: Tensor) -> Tensor:
        """A block's output -> (b, leading + rows columns, d)."""
        return activations if self.leading else activations.flatten(2).mT

    def activations(self, tokens: Tensor) -> Tensor:
        """The inverse of `tokens`."""
        return tokens if self.leading else tokens.mT.unflatten(2, self.grid)

    @classmethod
    def of(cls, tower: Any, activations: Tensor, reach: int) -> View:
        """The view of the layer that has put these out."""
        if activations.dim() == 3:
            return cls(tuple(tower.grid_size), 1, reach)
        return cls((activations.shape[2], activations.shape[3]), 0, reach)


class Affine(nn.Module):
    """a_p = f_p W + b_p: one matrix for all tokens p, and a constant for each: what a positional embedding needs."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.float(), False), nn.Parameter(bias.float(), False)

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias


class Sums:
    """What the least squares of one layer need of any number of pictures: sums, in float64, and no activations."""

    def __init__(self, view: View):
        self.view, self.count = view, 0
        self.f = self.a = self.ff = self.fa = self.aa = torch.zeros(())

    def add(self, latents: Tensor, activations: Tensor) -> None:
        """Take in latents (b, c, h, w) and what the layer put out for their pictures."""
        f, a = self.view(latents).double(), self.view.tokens(activations).double()
        self.count += len(f)
        self.f, self.a = self.f + f.sum(0), self.a + a.sum(0)
        f, a = f.flatten(0, 1), a.flatten(0, 1)
        self.ff, self.fa, self.aa = self.ff + f.T @ f, self.fa + f.T @ a, self.aa + a.square().sum()

    def solve(self, ridge: float) -> Affine:
        """The least squares; the ridge counts in mean squares of the features.

        Raises ValueError for fewer equations than unknowns, and for a ridge that is not above 0.
        """
        if not ridge > 0:
            raise ValueError(f"ridge = {ridge}: expected above 0, such as 1e-3: it keeps the solution unique.")
        unknowns, equations = self.ff.shape[0], (self.count - 1) * len(self.f)
        if self.view.leading:
            unknowns, equations = unknowns // 2, self.count - 1  # those of the class token, which has the fewest
        if equations < unknowns:
            raise ValueError(
                f"{self.count} pictures to fit make {equations} equations for {unknowns} unknowns: expected at least "
                "as many; give more pictures, a smaller reach, or a lower layer."
            )
        f, a = self.f / self.count, self.a / self.count  # each token's means; without them there is no constant
        ff, fa = self.ff - self.count * f.T @ f, self.fa - self.count * f.T @ a
        weight = torch.linalg.solve(ff + ridge * ff.diagonal().mean() * torch.eye(len(ff)).to(ff), fa)
        return Affine(weight, a - f @ weight)

    def residual(self, linear: Affine) -> float:
        """|F W + b - A|^2 / |A|^2 on what was taken in here."""
        w, b = linear.weight.double(), linear.bias.double()
        crossed = (w * self.fa).sum() + (b * self.a).sum()
        squared = (w * (self.ff @ w)).sum() + 2 * (b * (self.f @ w)).sum() + self.count * b.square().sum()
        return float((self.aa - 2 * crossed + squared).clamp_min(0) / self.aa)
