"""Classical style transfer on emoji: AdaIN, regions, style prediction and instance normalization, each by its checks.

    python -m benchmarks.transfer                    200 pairs, and hours of training for the last two checks
    python -m benchmarks.transfer --small            minutes: it shows that everything runs, and little else
    python -m benchmarks.transfer --checks adain region

A check is passed when the 95 % bootstrap interval of the paired difference, over pairs of pictures, excludes 0 on the
right side. Art styles are told by emoji-style and names by emoji-judge, which none of the networks have seen. What was
measured is kept in OUT/transfer.jsonl, trainings go on where they stopped; writes benchmarks/results/transfer.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Generator, Tensor

from benchmarks.output import part_of, tabulate, write
from benchmarks.pairs import ALPHAS, Line, chunked, compared, line, pairs_of, rising
from benchmarks.transfer_trained import check_norm, check_prediction
from steer import measure, zoo
from steer.cli import record, show
from steer.rewards import Judge
from steer.transfer import adain, stylize
from steer.transfer.layers import dilated, eroded
from steer.transfer.losses import moment_distance, sliced_distance
from steer.zoo.data import compose, glyphs, scene


@dataclass(frozen=True)
class Transfer:
    """Which checks, on how much."""

    checks: tuple[str, ...] = ("adain", "region", "prediction", "norm")
    pairs: int = 200
    seeds: int = 3
    """of the comparison of norms"""
    steps: int = 2000
    """of training of each of its networks"""
    prediction_steps: int = 2000
    """of training of the prediction network without one art style"""
    small: bool = False
    """16 pairs, 10 steps, 40 steps"""
    out: Path = Path("steer-out/bench-transfer")
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown file whose part between `<!-- python -m benchmarks.transfer -->` and `<!-- end of ... -->` becomes the
    table"""


def hits(images: Tensor, wanted: Tensor) -> Tensor:
    """1 where emoji-style takes a picture for the wanted art style, (b,)."""
    with torch.no_grad():
        return (zoo.style_net()(images).argmax(1) == wanted).float()


def check_adain(bench: Transfer, encoder: Any) -> list[Line]:
    """Style accuracy against no strength and against the colours alone; monotone; the name stays; nearer the truth."""
    pairs = pairs_of(bench.pairs)
    content, style, wanted = compose(pairs.content), compose(pairs.style), pairs.wanted[:, 0]
    made = {alpha: chunked(lambda c, s, alpha=alpha: stylize(c, s, alpha), content, style) for alpha in ALPHAS}
    found = {alpha: hits(images, wanted) for alpha, images in made.items()}
    pixels = hits(adain(content, style).clamp(0, 1), wanted)
    names = glyphs()[1]
    ranks = [measure.name_rank(i, [names[k] for k in pairs.which[:, 1]], names) for i in (made[0.5], content)]
    half, real = ((rank < 5).float() for rank in ranks)
    truth, judge = Judge().embed_images(pairs.truth), Judge()
    near, before = ((judge.embed_images(images) * truth).sum(1) for images in (made[1.0], content))
    slope, share = rising(torch.stack([found[alpha].mean() for alpha in ALPHAS])), half.sum() / real.sum()
    return [
        compared("AdaIN (a)", "STYLE-ACC at alpha 1, against 0", found[1.0], found[0.0]),
        compared("AdaIN (a)", "STYLE-ACC, against mean and deviation of pixels", found[1.0], pixels),
        line("AdaIN (b)", "Spearman of STYLE-ACC and alpha, at least 0.9", slope, 0.9, slope >= 0.9),
        line("AdaIN (c)", "NAME-R@5 at alpha 0.5, at least 0.7 of the real", share, 0.7, share >= 0.7),
        compared("AdaIN (d)", "judge's cos to the real glyph in that style, against the content's", near, before),
        line("AdaIN", "STYLE-ACC of the real glyphs: the ceiling", hits(pairs.truth, wanted).mean(), 1.0, True),
    ]


def check_region(bench: Transfer, encoder: Any) -> list[Line]:
    """One object of two: masked against style-then-mask; what lies outside; the seam with blending and without."""
    pairs, other = pairs_of(bench.pairs, seed=1), pairs_of(bench.pairs, seed=2).content
    places = [scene(a, b, "and") for a, b in zip(pairs.content, other)]
    content, mask = torch.stack(places), torch.stack([matte(a) for a in pairs.content])
    style, inside = compose(pairs.style), (pairs.style[:, 3:] > 0.5).float()
    run = {
        "masked": lambda c, s, m, i: stylize(c, s, mask=m, style_mask=i),
        "unblended": lambda c, s, m, i: stylize(c, s, mask=m, style_mask=i, blend=False),
        "then mask": lambda c, s, m, i: c.lerp(stylize(c, s, style_mask=i), m),
    }
    made = {name: chunked(call, content, style, mask, inside) for name, call in run.items()}
    losses = {n: moment_distance(encoder(p), encoder(style), mask, inside) for n, p in made.items()}
    sliced = {n: torch.stack([*map(emd, p, style, mask, inside)]) for n, p in made.items()}
    blended, bare = (seam(made[name], mask) for name in ("masked", "unblended"))
    seams = measure.interval(blended - bare)
    full = chunked(lambda c, s: stylize(c, s, mask=torch.ones_like(c[:, :1])), content, style)
    apart = (full - chunked(stylize, content, style)).abs().max()
    moved = ((made["masked"] != content) & (mask == 0)).sum()
    return [
        compared("region (a)", "style loss inside, against style-then-mask", losses["masked"], losses["then mask"], -1),
        compared("region (a)", "sliced EMD inside, against style-then-mask", sliced["masked"], sliced["then mask"], -1),
        line("region (b)", "values outside that changed", moved, 0, moved == 0),
        line("region (b)", "a mask of ones against none, within 1e-5", apart, 1e-5, apart < 1e-5),
        line(
            "region (c)",
            "gradient on the border, blended against not",
            blended.mean(),
            bare.mean(),
            seams.mean <= 0,
            seams,
        ),
    ]


def matte(picture: Tensor) -> Tensor:
    """(1, 64, 64): 1 where the left object of a scene, RGBA (4, 64, 64), lies."""
    white, nothing = picture.clone(), torch.zeros_like(picture)
    white[:3] = 1
    return (scene(white, nothing, "and", (0.0, 0.0, 0.0))[:1] > 0.5).float()


def emd(picture: Tensor, style: Tensor, mask: Tensor, inside: Tensor) -> Tensor:
    """Sliced distance of colours, by the same 50 directions for every picture."""
    return sliced_distance(picture, style, Generator().manual_seed(0), mask, inside)


def seam(images: Tensor, mask: Tensor) -> Tensor:
    """Mean |gradient| of pictures within a pixel of the mask's border, (b,)."""
    border = dilated(mask, 1) - eroded(mask, 1)
    steep = torch.stack([d.abs() for d in torch.gradient(images, dim=(2, 3))]).sum((0, 2))
    return (steep * border[:, 0]).sum((1, 2)) / border.sum((1, 2, 3)).clamp_min(1)


def main(bench: Transfer) -> None:
    """Run what is missing, then write the table."""
    checks = {"adain": check_adain, "region": check_region, "prediction": check_prediction, "norm": check_norm}
    if unknown := set(bench.checks) - set(checks):
        raise ValueError(f"checks {sorted(unknown)}: expected some of {tuple(checks)}.")
    if bench.small:
        bench = replace(bench, pairs=16, steps=10, prediction_steps=40)
    record.folder(bench.out)
    record.folder(bench.results)
    part, encoder, rows = part_of(bench), zoo.adain_net().encoder, record.Rows(bench.out / "transfer.jsonl")
    steps = [bench.steps, bench.prediction_steps]
    size = {"pairs": bench.pairs, "seeds": bench.seeds, "steps": steps, **record.origin()}
    with show.bars() as bars:
        for name in bars.track(bench.checks, description="checks"):
            if not rows.find(name=name, size=size):
                with torch.no_grad():
                    rows.add({"name": name, "size": size, "lines": checks[name](bench, encoder)})
    table = [entry for name in bench.checks for entry in rows.find(name=name, size=size)[-1]["lines"]]
    tabulate(table, "style transfer on emoji; 95 % intervals of differences", part)
    write(bench, {"table": table})


if __name__ == "__main__":
    main(tyro.cli(Transfer, description=__doc__))
