"""`steer style`: a picture in the style of others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

if TYPE_CHECKING:
    from torch import Tensor

    from steer.diffusion.trajectory import Trajectory


@dataclass(frozen=True)
class Style:
    """Redraw a picture in the style of each of some others (StyleID), at several strengths.

    Pictures are files, or emoji as STYLE:NAME. All are inverted, the content is drawn anew with their attention.
    Example: steer style noto:fox "fluent:teddy bear" twemoji:fox --strength 0.5 1
    """

    content: Positional[str]
    styles: Positional[tuple[str, ...]]
    gamma: float = 0.75
    """from 0 to 1: how much of the content is kept; 0.3 for more style"""
    tau: float = 1.5
    """sharpens the attention"""
    strength: tuple[float, ...] = (0.25, 0.5, 1.0)
    """how much of what is injected counts; 1 is the paper's"""
    mask: str | None = None
    """a picture, bright where the style is to act, or an emoji, whose shape it is then"""
    layers: str | None = None
    """a regular expression for the names of the attention layers; those of the decoder if not given"""
    model: str = "emoji"
    """a folder or hub id of a diffusers pipeline, or `emoji`, the embedded one"""
    steps: int = 50
    repeats: int = 0
    """fixed-point iterations of the inversion: a better way back, for so many times its rows"""
    out: Path = Path("steer-out/style")

    def run(self) -> None:
        from steer.cli import pictures, record, running, show
        from steer.draw import save_png

        show.quiet()
        self._check()
        content, *styles = [pictures.picture(name) for name in (self.content, *self.styles)]
        out = record.folder(self.out)
        pipe, network = running.loaded(self.model)
        pipe, size = running.deterministic(pipe), running.size_of(pipe)
        pixels = [one.at(size) for one in (content, *styles)]
        mask = None if self.mask is None else pictures.mask(self.mask, size)
        found = [running.inverted(pipe, one, "", self.steps, self.repeats) for one in pixels]
        (source, _, psnr), *references = found
        written, images = [], []
        for k, (reference, _, own) in enumerate(references):
            for j, strength in enumerate(self.strength):
                output = self._styled(pipe, network, source, reference, strength, mask)
                row = {"by": self.styles[k], "at": strength, "psnr": {"content": psnr, "style": own}}
                row |= {"inversion rows": source.rows + reference.rows, "ledger": output.ledger.row()}
                written.append({**record.config(self), "file": f"{k}-{j}.png", **row, **record.origin()})
                images += output.images
        for row, image in zip(written, images):
            save_png(image, out / row["file"])
        self._draw(out, pixels, images, [psnr for _, _, psnr in found])
        record.Rows(out / "results.jsonl").replace(written)
        show.table(
            f"{self.content}, gamma {self.gamma:g}, tau {self.tau:g}",
            ["picture", "style", "strength", "rows"],
            [[row["file"], row["by"], f"{row['at']:g}", str(row["ledger"]["rows"])] for row in written],
            f"inversion and back: {psnr:.1f} dB of {self.content}; everything is in {out}",
        )

    def _check(self) -> None:
        if not self.styles:
            raise ValueError("no style: give at least one picture after the content, as in steer style noto:fox x.png.")
        if self.steps < 1 or self.repeats < 0:
            raise ValueError(f"--steps {self.steps} --repeats {self.repeats}: expected at least 1 and at least 0.")
        if not self.strength or not all(0 < one <= 1 for one in self.strength):
            raise ValueError(f"--strength {self.strength}: expected numbers above 0, up to 1.")
        if not (0 <= self.gamma <= 1 and self.tau > 0):
            raise ValueError(f"--gamma {self.gamma} --tau {self.tau}: expected 0 <= gamma <= 1 and tau > 0.")

    def _styled(
        self, pipe: Any, network: Any, content: Trajectory, style: Trajectory, strength: float, mask: Tensor | None
    ) -> Any:
        import steer
        from steer.cli import running
        from steer.diffusion.controllers.style import style_id

        control = style_id(network, content, style, self.gamma, self.tau, self.layers, strength, mask)
        with running.steps_shown(f"style at strength {strength:g}", self.steps) as tell:
            return steer.Steered(pipe, control)(
                "", n=1, num_inference_steps=self.steps, guidance_scale=1.0, callback_on_step_end=tell
            )

    def _draw(self, out: Path, pixels: list[Tensor], images: list[Any], psnr: list[float]) -> None:
        from steer.draw import contact_sheet, save_png

        each, tiles, captions = len(self.strength), [], []
        for k in range(len(self.styles)):
            tiles += [pixels[0], pixels[k + 1], *images[k * each : (k + 1) * each]]
            captions += [f"back: {one:.1f} dB" for one in (psnr[0], psnr[k + 1])] + [""] * each
        labels = ["content", "style", *(f"strength {one:g}" for one in self.strength)]
        sheet = contact_sheet(tiles, 2 + each, row_labels=self.styles, column_labels=labels, captions=captions)
        save_png(sheet, out / "styles.png")
