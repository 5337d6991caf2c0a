"""The model card of the embedded world, measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steer import measure, zoo
from steer.cli import record, show
from steer.draw import contact_sheet, save_png
from steer.rewards import ClipScore, Judge
from steer.zoo.data import STYLES, caption, compose, glyphs, split

if TYPE_CHECKING:
    from steer.cli.world import Check

MEASURES = {
    "NAME-R@1": "share of pictures whose right name the judge puts first",
    "NAME-R@5": "... among its first five of all names",
    "STYLE-ACC": "share of pictures that emoji-style takes for the style asked for",
    "CLIP-T": "cos(picture, caption) by emoji-clip",
    "CLIP-T judge": "... by emoji-judge",
}


def scores(images: Tensor, names: list[str], styles: list[str]) -> dict[str, float]:
    """The measures of `MEASURES` of pictures (b, 3, 64, 64) that should show these names in these styles."""
    rank = measure.name_rank(images, names, glyphs()[1])
    prompts = [caption(name, style) for name, style in zip(names, styles)]
    return {
        "NAME-R@1": float((rank < 1).float().mean()),
        "NAME-R@5": float((rank < 5).float().mean()),
        "STYLE-ACC": measure.style_accuracy(images, styles),
        "CLIP-T": float(ClipScore()(images, prompts).mean()),
        "CLIP-T judge": float(Judge()(images, prompts).mean()),
    }


def psnr(pipe: Any, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of the pipeline's autoencoder, -10 log10 MSE, averaged over pictures."""
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(images * 2 - 1).latent_dist.mean).sample.add(1).div(2).clamp(0, 1)
    return float((-10 * (decoded - images).square().flatten(1).mean(1).log10()).mean())


def generate(model: str, pipe: Any, names: list[str], command: Check) -> Tensor:
    """(names x styles, 3, 64, 64): every name in every style, style by style."""
    options = {"num_inference_steps": command.steps, "guidance_scale": command.guidance, **zoo.CALLS.get(model, {})}
    prompts = [caption(name, style) for style in STYLES for name in names]
    generator, parts = torch.Generator().manual_seed(command.seed), []
    pipe.set_progress_bar_config(disable=True)
    with show.bars() as bars:
        task = bars.add_task("pictures", total=len(prompts))
        for k in range(0, len(prompts), 32):
            batch = prompts[k : k + 32]
            parts.append(pipe(batch, generator=generator, output_type="pt", **options).images.float())
            bars.advance(task, len(batch))
    return torch.cat(parts)


def check(command: Check) -> None:
    """Print the card, and write it with a contact sheet of every pipeline: 32 of the names in all four styles."""
    show.quiet()
    out = record.folder(command.out)
    there = [name for name in zoo.PIPELINES if (zoo.WEIGHTS / name).is_dir()] or ["emoji-sd"]
    trained = [command.only] if command.only else there
    pipes = {name: zoo.load(name) for name in trained}
    pictures, every, _ = glyphs()
    if not 2 <= command.names <= len(every):
        raise ValueError(f"--names {command.names}: expected 2 to {len(every)}.")
    chosen = torch.linspace(0, len(every) - 1, command.names).round().long()
    names = [every[k] for k in chosen]
    seen, held = split(), (~split()).nonzero()
    made = {name: generate(name, pipe, names, command) for name, pipe in pipes.items()}
    real, unseen = compose(pictures[:, chosen].flatten(0, 1)), compose(pictures[held[:, 0], held[:, 1]])
    styles = [style for style in STYLES for _ in names]
    columns = {
        **{name: scores(images, names * 4, styles) for name, images in made.items()},
        "real": scores(real, names * 4, styles),
        "real, unseen": scores(unseen, [every[k] for k in held[:, 1]], [STYLES[k] for k in held[:, 0]]),
    }
    one, other = compose(pictures[seen])[::2], compose(pictures[seen])[1::2]
    for name, images in made.items():
        columns[name]["KID x1000"] = measure.kid(images, real, paired=True)
    columns["real"]["KID x1000"] = measure.kid(one, other)
    columns["real, unseen"]["VAE PSNR dB"] = psnr(pipes[trained[0]], unseen)  # all share one autoencoder
    rows = [
        [name, *(_cell(column.get(name)) for column in columns.values())]
        for name in (*MEASURES, "KID x1000", "VAE PSNR dB")
    ]
    show.table(f"{len(styles)} pictures each, {command.steps} steps, guidance {command.guidance}", ["", *columns], rows)
    content = {"config": record.config(command), **record.origin(), "card": columns}
    (out / "card.json").write_text(json.dumps(content, indent=1) + "\n")
    shown = torch.linspace(0, len(names) - 1, min(32, len(names))).round().long()
    for name, images in made.items():
        sheet = images.unflatten(0, (4, -1))[:, shown].transpose(0, 1).flatten(0, 1)
        save_png(contact_sheet(list(sheet), columns=16), out / f"{name}.png")
    show.console.print(f"wrote card.json and {', '.join(f'{name}.png' for name in made)} to {out}")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
