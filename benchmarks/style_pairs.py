"""Pairs of emoji for style transfer, with the true picture of each, and what pictures made for them are measured by."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steer import measure
from steer.rewards import Judge
from steer.zoo import style_net
from steer.zoo.data import STYLES, bucket, captions, compose, glyphs, split


class Pair(NamedTuple):
    """A name in two styles, and another name in the second one."""

    name: str
    source: str
    target: str
    reference: str

    def picture(self, name: str, style: str) -> Tensor:
        """(3, 64, 64) on white."""
        pictures, names, styles = glyphs()
        return compose(pictures[styles.index(style), names.index(name)])

    @property
    def content(self) -> Tensor:
        return self.picture(self.name, self.source)

    @property
    def style(self) -> Tensor:
        return self.picture(self.reference, self.target)

    @property
    def truth(self) -> Tensor:
        return self.picture(self.name, self.target)


def pairs_of(count: int) -> list[Pair]:
    """Held-out names, spread evenly; source style and reference are chosen by hash.

    Raises ValueError for fewer than 2 and for more than there are.
    """
    held = [row for row in captions() if row["held_out_style"]]
    if not 2 <= count <= len(held):
        raise ValueError(f"pairs = {count}: expected 2 to {len(held)}, the names with a held-out style.")
    found, seen = [], split()
    for k in torch.linspace(0, len(held) - 1, count).round().long():
        name, target = held[k]["name"], held[k]["held_out_style"]
        sources = [one for one in STYLES if one != target]
        trained = [row["name"] for row, there in zip(captions(), seen[STYLES.index(target)], strict=True) if there]
        reference = trained[bucket("reference", name, n=len(trained))]
        found.append(Pair(name, sources[bucket("source", name, n=len(sources))], target, reference))
    return found


@torch.no_grad()
def measured(pair: Pair, pictures: Tensor) -> dict[str, list[float]]:
    """Of pictures (b, 3, 64, 64) made for a pair, one value each."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    judge, count, names = Judge(), len(pictures), glyphs()[1]
    seen, truth, content = (judge.embed_images(one) for one in (pictures, pair.truth[None], pair.content[None]))
    ssim = [structural_similarity_index_measure(one[None], pair.truth[None], data_range=1.0) for one in pictures]
    target = style_net()(pictures).argmax(-1) == STYLES.index(pair.target)
    return {
        "style": target.float().tolist(),
        "name@5": (measure.name_rank(pictures, [pair.name] * count, names) < 5).float().tolist(),
        "ssim": [float(one) for one in ssim],
        "truth": (seen @ truth.T)[:, 0].tolist(),
        "content": (seen @ content.T)[:, 0].tolist(),
    }


def psnr(picture: Tensor, other: Tensor) -> float:
    return float(-10 * (picture - other).square().mean().log10())
