"""Style injection against its ablations and image to image, on emoji whose true picture in the other style exists.

    python -m benchmarks.style                41 pairs; resumes where it stopped
    python -m benchmarks.style --small        6 pairs, 10 steps, two settings a dial

The content is a glyph in one style, the reference another name's glyph in the target style; the content's own glyph in
the target style is the truth, which no model was trained on. Every method has a dial from the content itself (0) to its
full strength (1). Measures: STYLE-ACC of the target, the content's NAME-R@5 by the judge, SSIM and judge cosine to the
truth, and judge cosine to the content, at which the methods are compared (see `benchmarks.dials`).

Writes a row a picture to OUT/results.jsonl, OUT/style.png, and the tables to benchmarks/results/style.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor

import steer
from benchmarks.dials import Curves
from benchmarks.output import part_of, tabulate, write
from benchmarks.style_memory import memory
from benchmarks.style_pairs import Pair, measured, pairs_of, psnr
from steer.cli import record, show
from steer.diffusion.controllers import style
from steer.draw import contact_sheet, save_png
from steer.zoo.data import caption

MEASURES = ("style", "name@5", "ssim", "truth")
ANCHOR = "styleid .75"
SHOWN = ("img2img, prompt", "adain", "injection", "stylealigned", "styleid .75", "styleid .3", "styleid .75, prompt")
SAME = ("steps", "dials", "guidance", "repeats")
SMALL = {"pairs": 6, "steps": 10, "dials": (0.5, 1.0)}


@dataclass(frozen=True)
class Style:
    """At most one pair for every name with a held-out style."""

    pairs: int = 41
    steps: int = 25
    dials: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """settings, increasing to 1; 0 is the content inverted and reconstructed"""
    guidance: float = 3.0
    """of the runs with a prompt, which names content and target style"""
    repeats: int = 3
    """of the inversion, see `steer.invert`"""
    levels: tuple[float, ...] = (0.5, 0.65, 0.8)
    """content similarities at which the methods are compared"""
    memory: bool = True
    """measure the memory of StyleID at 512 px too: about a minute"""
    small: bool = False
    out: Path = Path("steer-out/bench-style")
    results: Path = Path("benchmarks/results")
    into: Path | None = None
    """a Markdown page; the table goes between its `<!-- python -m benchmarks.style -->` and the end of that"""


class Made(NamedTuple):
    """A picture (3, 64, 64), and the rows of the network that made it, inversions left out."""

    picture: Tensor
    rows: int


class Workshop:
    """The pipelines, and all methods for one pair."""

    def __init__(self, bench: Style):
        from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

        self.bench, self.pipe = bench, steer.load("emoji")
        self.pipe.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        self.again = StableDiffusionImg2ImgPipeline(**self.pipe.components, requires_safety_checker=False)
        for pipe in (self.pipe, self.again):
            pipe.set_progress_bar_config(disable=True)

    def invert(self, picture: Tensor, repeats: int | None = None) -> steer.Trajectory:
        repeats = self.bench.repeats if repeats is None else repeats
        return steer.invert(self.pipe, picture[None], num_inference_steps=self.bench.steps, repeats=repeats)

    @torch.no_grad()
    def through(self, picture: Tensor) -> Tensor:
        """What the autoencoder makes of it."""
        latents = self.pipe.vae.encode(2 * picture[None] - 1).latent_dist.mode()
        return (self.pipe.vae.decode(latents).sample[0] / 2 + 0.5).clamp(0, 1)

    def run(self, controllers: Any, prompt: str = "", **kwargs: Any) -> Made:
        options = {"num_inference_steps": self.bench.steps, "guidance_scale": self.bench.guidance if prompt else 1.0}
        found = steer.Steered(self.pipe, controllers)(prompt, n=1, output_type="pt", **options, **kwargs)
        return Made(found.images[0].float(), found.ledger.rows)

    def img2img(self, picture: Tensor, prompt: str, strength: float) -> Made:
        options = {"num_inference_steps": self.bench.steps, "guidance_scale": self.bench.guidance if prompt else 1.0}
        generator = torch.Generator().manual_seed(0)
        made = self.again(prompt, picture, strength, generator=generator, output_type="pt", **options).images
        return Made(made[0].float(), int(self.bench.steps * strength) * (2 if prompt else 1))

    def methods(self, pair: Pair) -> Iterator[tuple[str, float, Callable[[], Made]]]:
        """Method, dial, and what makes its picture."""
        content, other, unet = self.invert(pair.content), self.invert(pair.style), self.pipe.unet
        prompt, start = caption(pair.name, pair.target), {"latents": content.noise}
        back, flat = self.run((), **start), Made(self.through(pair.content), 0)

        def injected(dial: float, gamma: float = 0.75, adain: bool = True, prompt: str = "") -> Made:
            return self.run(style.style_id(unet, content, other, gamma, strength=dial, adain=adain), prompt)

        dialled: dict[str, tuple[Made, Callable[[float], Made]]] = {
            "img2img": (flat, lambda dial: self.img2img(pair.content, "", dial)),
            "img2img, prompt": (flat, lambda dial: self.img2img(pair.content, prompt, dial)),
            "adain": (back, lambda dial: self.run(style.latent_adain(other, dial, clean=False, content=content))),
            "injection": (back, lambda dial: injected(dial, adain=False)),
            "stylealigned": (back, lambda dial: self.run(style.style_aligned(unet, other, strength=dial), **start)),
            "stylealigned, prompt": (
                back,
                lambda dial: self.run(style.style_aligned(unet, other, strength=dial), prompt, **start),
            ),
            "styleid .75": (back, injected),
            "styleid .3": (back, lambda dial: injected(dial, 0.3)),
            "styleid .75, prompt": (back, lambda dial: injected(dial, prompt=prompt)),
            "styleid .3, prompt": (back, lambda dial: injected(dial, 0.3, prompt=prompt)),
        }
        for method, (zero, make) in dialled.items():
            yield method, 0.0, lambda zero=zero: zero
            for dial in self.bench.dials:
                yield method, dial, lambda make=make, dial=dial: make(dial)


def fidelity(shop: Workshop, pair: Pair) -> dict[str, float]:
    """dB: inversion and reconstruction against the autoencoder's picture, and StyleID of a picture by itself."""
    flat, found = shop.through(pair.content), {}
    for repeats in dict.fromkeys((0, shop.bench.repeats)):
        trajectory = shop.invert(pair.content, repeats)
        back = shop.run((), latents=trajectory.noise).picture
        found[f"inversion, repeats {repeats}"] = psnr(back, flat)
        same = style.style_id(shop.pipe.unet, trajectory, trajectory, gamma=0.0, tau=1.0, adain=False)
        found[f"styled by itself, repeats {repeats}"] = psnr(shop.run(same).picture, back)
    return found


def fill(bench: Style, pairs: list[Pair], results: record.Rows) -> None:
    """Run what is missing. Raises ValueError for rows that other options have made."""
    base = {"config": json.loads(json.dumps(record.config(bench))), **record.origin()}
    for name in SAME:
        if other := [row["config"][name] for row in results.rows if row["config"][name] != base["config"][name]]:
            raise ValueError(f"{results.path} was made with {name} = {other[0]}: give the same, or another --out.")
    shop = Workshop(bench)
    with show.bars() as bars:
        task = bars.add_task("style", total=len(pairs))
        for pair in pairs:
            if not results.find(name=pair.name, method="fidelity"):
                rows = [dict(row, name=pair.name) for row in _rows(shop, pair, bench.out)]
                for row in rows:  # the row that says that the pair is complete comes last
                    if not results.find(name=pair.name, method=row["method"], dial=row["dial"]):
                        results.add({**row, **base})
            bars.advance(task)


def _rows(shop: Workshop, pair: Pair, out: Path) -> list[dict[str, Any]]:
    labels, made = [], []
    for method, dial, make in shop.methods(pair):
        labels.append((method, dial))
        made.append(make())
    for label, picture in (("truth", shop.through(pair.truth)), ("content", pair.content)):
        labels.append((label, 0.0))
        made.append(Made(picture, 0))
    pictures = torch.stack([one.picture for one in made])
    save_file({f"{m}|{d}": (255 * p).byte() for (m, d), p in zip(labels, pictures)}, out / f"{pair.name}.safetensors")
    values = measured(pair, pictures)
    rows = [
        {"method": method, "dial": dial, "rows": one.rows, **{name: column[k] for name, column in values.items()}}
        for k, ((method, dial), one) in enumerate(zip(labels, made, strict=True))
    ]
    return [*rows, {"method": "fidelity", "dial": 0.0, **fidelity(shop, pair)}]


def tables(rows: list[dict[str, Any]], levels: Sequence[float]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every method at its full strength; and ANCHOR against the others at levels of content similarity."""
    curves = Curves.of([row for row in rows if row["method"] != "fidelity"], (*MEASURES, "rows"))
    full = [
        {"method": method, **{name: float(column[-1].mean()) for name, column in found.items()}}
        for method, found in curves.found.items()
    ]
    others = [method for method in curves.found if method not in ("truth", "content", ANCHOR)]
    equal = [
        {"content": level, "minus": other, **{name: curves.ahead(ANCHOR, other, name, level) for name in MEASURES}}
        for level in levels
        for other in others
    ]
    return full, equal


def checks(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the method's authors would want to see: differences at full strength with intervals, and dB."""
    curves = Curves.of([row for row in rows if row["method"] != "fidelity"], MEASURES)
    found: dict[str, Any] = {
        f"STYLE-ACC, {ANCHOR} - {other}": curves.difference(ANCHOR, other, "style") for other in ("adain", "injection")
    }
    found["NAME-R@5, gamma .75 - .3"] = curves.difference(ANCHOR, "styleid .3", "name@5")
    found["STYLE-ACC, gamma .3 - .75"] = curves.difference("styleid .3", ANCHOR, "style")
    kept = [row for row in rows if row["method"] == "fidelity"]
    for name in [name for name in kept[0] if name.startswith(("inversion", "styled"))]:
        found[f"dB, {name}"] = sum(row[name] for row in kept) / len(kept)
    return found


def sheet(bench: Style, pairs: list[Pair], dial: float) -> None:
    """The first pairs: content, reference, what some methods make at full strength, and the truth."""
    tiles, labels = [], []
    for pair in pairs[:12]:
        made = load_file(bench.out / f"{pair.name}.safetensors")
        shown = [made[f"{method}|{dial}"].float() / 255 for method in SHOWN]
        tiles += [pair.content, pair.style, *shown, pair.truth]
        labels.append(f"{pair.name}\n{pair.source} to {pair.target}")
    columns = ["content", "style", *SHOWN, "truth"]
    save_png(contact_sheet(tiles, len(columns), row_labels=labels, column_labels=columns), bench.out / "style.png")


def main(bench: Style) -> None:
    """Run what is missing, then write the tables and the sheet."""
    bench = replace(bench, **SMALL) if bench.small else bench
    record.folder(bench.results)
    part, pairs = part_of(bench), pairs_of(bench.pairs)
    results = record.Rows(record.folder(bench.out) / "results.jsonl")
    fill(bench, pairs, results)
    names = {pair.name for pair in pairs}
    rows = [row for row in results.rows if row["name"] in names]
    full, equal = tables(rows, bench.levels)
    tabulate(full, "at full strength", None)
    tabulate(equal, f"{ANCHOR} minus the others at equal content similarity; 95 % intervals", part)
    content = {"full": full, "equal": equal, "checks": checks(rows), "memory": memory() if bench.memory else None}
    tabulate([{"check": name, "measured": value} for name, value in content["checks"].items()], "checks", None)
    if content["memory"]:
        tabulate([content["memory"]], "512 px, one layer a block", None)
    sheet(bench, pairs, bench.dials[-1])
    write(bench, content)


if __name__ == "__main__":
    main(tyro.cli(Style, description=__doc__))
