"""`steer edit`: a picture changed by another prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from torch import Tensor

    from steer.diffusion.controllers.edit import Alignment
    from steer.diffusion.trajectory import Trajectory


@dataclass(frozen=True)
class Edit:
    """Change a picture into what another prompt says, and keep the rest.

    p2p keeps the layout and where words are looked at, pnp its structure, masactrl the looks in another pose; inpaint
    repaints a mask. Example: steer edit "noto:red apple" "a green apple, noto style"
    """

    source: Positional[str]
    """a file, or an emoji as STYLE:NAME"""
    target: Positional[str]
    """the prompt of the edited picture"""
    method: Literal["p2p", "masactrl", "pnp", "inpaint"] = "p2p"
    caption: str | None = None
    """what the source shows; of an emoji it is known"""
    mask: str | None = None
    """of inpaint: a picture, bright where to repaint, or an emoji, whose shape it is then"""
    cross: float = 0.8
    """of p2p: up to this share of the run words are looked at where the source's were"""
    self_: Annotated[float, arg(name="self")] = 0.4
    """of p2p: up to this share of the run the picture looks at itself as the source did"""
    from_step: float = 0.08
    """of masactrl: from this share of the run on the source's looks are read"""
    attention: float = 0.5
    """of pnp: up to this share of the run the picture looks at itself as the source did"""
    features: float = 0.8
    """of pnp: up to this share of the run the features are the source's"""
    model: str = "emoji"
    """a folder or hub id of a diffusers pipeline, or `emoji`, the embedded one"""
    steps: int = 50
    guidance: float = 3.0
    seed: int = 0
    """of inpaint; the others start from the source's noise"""
    repeats: int = 0
    """fixed-point iterations of the inversion: a better way back, for so many times its rows"""
    out: Path = Path("steer-out/edit")

    def run(self) -> None:
        from steer.cli import pictures, record, running, show
        from steer.draw import save_png
        from steer.rewards.border import to_pil

        show.quiet()
        given = pictures.picture(self.source)
        caption = given.caption if self.caption is None else self.caption
        self._check(caption)
        out = record.folder(self.out)
        pipe, network = running.loaded(self.model)
        pipe, size = running.deterministic(pipe), running.size_of(pipe)
        pixels = given.at(size)
        mask = None if self.mask is None else pictures.mask(self.mask, size)
        source, back, psnr = running.inverted(pipe, pixels, caption, self.steps, self.repeats)
        output = self._generate(pipe, self._controller(pipe, network, source, caption, mask))
        save_png(output.images[0], out / "edited.png")
        row = {
            **record.config(self),
            "caption": caption,
            "file": "edited.png",
            "psnr": psnr,
            "inversion rows": source.rows,
            "ledger": output.ledger.row(),
            **record.origin(),
        }
        self._draw(out, [*to_pil(pixels[None]), *to_pil(back[None]), *output.images], psnr)
        record.Rows(out / "results.jsonl").replace([row])
        show.table(
            f"{caption or self.source} -> {self.target}",
            ["method", "inversion and back, dB", "rows"],
            [[self.method, f"{psnr:.1f}", str(output.ledger.rows)]],
            f"edited.png and edit.png are in {out}",
        )

    def _check(self, caption: str) -> None:
        if not self.target.strip():
            raise ValueError("the target prompt is empty: say what the edited picture is to show.")
        if self.steps < 1 or self.repeats < 0:
            raise ValueError(f"--steps {self.steps} --repeats {self.repeats}: expected at least 1 and at least 0.")
        for name in ("cross", "self_", "from_step", "attention", "features"):
            if not 0 <= getattr(self, name) <= 1:
                option = name.rstrip("_").replace("_", "-")
                raise ValueError(f"--{option} {getattr(self, name)}: expected a share of the run, from 0 to 1.")
        if self.method == "p2p" and not caption.strip():
            raise ValueError(
                f"p2p compares two prompts: say what {self.source} shows by --caption, or take --method pnp."
            )
        if (self.method == "inpaint") != (self.mask is not None):
            raise ValueError(
                f"--method {self.method} --mask {self.mask}: a mask goes with inpaint, and inpaint needs one."
            )

    def _controller(self, pipe: Any, network: Any, source: Trajectory, caption: str, mask: Tensor | None) -> Any:
        from steer.diffusion.controllers import edit

        if self.method == "p2p":
            pairs = alignment(pipe, caption, self.target, source.cond["encoder_hidden_states"].shape[-2])
            return edit.prompt_to_prompt(network, source, pairs, self.cross, self.self_)
        if self.method == "masactrl":
            return edit.masactrl(network, source, self.from_step)
        if self.method == "pnp":
            return edit.plug_and_play(network, source, self.attention, self.features)
        return edit.inpaint(mask, source)

    def _generate(self, pipe: Any, controller: Any) -> Any:
        import torch

        import steer
        from steer.cli import running

        with running.steps_shown(f"{self.method} on {self.model}", self.steps) as tell:
            return steer.Steered(pipe, controller)(
                self.target,
                n=1,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=torch.Generator().manual_seed(self.seed),
                callback_on_step_end=tell,
            )

    def _draw(self, out: Path, images: list[Any], psnr: float) -> None:
        from steer.draw import contact_sheet, save_png

        labels = ["source", "inverted and back", self.target]
        save_png(contact_sheet(images, column_labels=labels, captions=["", f"{psnr:.1f} dB", ""]), out / "edit.png")


def alignment(pipe: Any, source: str, target: str, length: int) -> Alignment:
    """Which tokens of two prompts belong together, for a network that is given `length` tokens of text."""
    import torch

    from steer.cli import running
    from steer.diffusion.controllers.edit import Alignment, aligned

    first, *second = running.tokenizers_of(pipe)
    found = aligned(first, source, target, min(length, first.model_max_length))
    rest = length - len(found.kept)
    if rest == 0:
        return found
    same = Alignment(torch.eye(rest), torch.ones(rest))  # an SD3 without its T5 is given zeros there
    return found + (aligned(second[0], source, target, rest) if second else same)
