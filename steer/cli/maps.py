"""`steer maps`: where a picture looks at the words of its prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

if TYPE_CHECKING:
    from torch import Tensor

    from steer.diffusion.controllers.compose.words import Phrase

WORD = r"\w+(?:['’-]\w+)*"


@dataclass(frozen=True)
class Maps:
    """Draw a picture and, for every word of its prompt, where the network looks at that word.

    Averaged over heads, layers and steps; a word of several tokens is the mean of theirs. Bright is much.
    Example: steer maps "a red apple, noto style" --words apple red
    """

    prompt: Positional[str]
    words: tuple[str, ...] = ()
    """words or phrases of the prompt; all its words if not given"""
    model: str = "emoji"
    """a folder or hub id of a diffusers pipeline, or `emoji`, the embedded one"""
    layers: str = ""
    """a regular expression for the names of the attention layers, as `up_blocks`"""
    sides: tuple[int, ...] = ()
    """heights of the maps that count, as 8 16; all if not given"""
    start: float = 0.0
    """share of the run from which maps are kept"""
    stop: float = 1.0
    """share of the run up to which maps are kept"""
    steps: int = 25
    guidance: float = 3.0
    seed: int = 0
    images: int = 1
    out: Path = Path("steer-out/maps")

    def run(self) -> None:
        import steer
        from steer.cli import record, running, show
        from steer.diffusion.controllers.maps import Maps as Kept

        show.quiet()
        phrases = self._phrases()
        out = record.folder(self.out)
        pipe, network = running.loaded(self.model)
        spans = token_spans(pipe, self.prompt, phrases)
        tokens = tuple(sorted({token for span in spans for token in span}))
        kept = Kept(network, tokens, self.layers, self.sides)
        output = self._generate(pipe, steer.during(kept, self.start, self.stop))
        places = [[tokens.index(token) for token in span] for span in spans]
        maps = kept.mean()  # (images, tokens, h, w)
        words = [phrase.text for phrase in phrases]
        heat = [[one[place].mean(0) for place in places] for one in maps]
        written = []
        for k, heats in enumerate(heat):
            shares = {word: float(one.mean()) for word, one in zip(words, heats)}
            row = {"picture": k, "file": f"{k}.png", "shares": shares, "ledger": output.ledger.row()}
            written.append({**record.config(self), **row, **record.origin()})
        self._draw(out, output.images, words, heat)
        record.Rows(out / "results.jsonl").replace(written)
        show.table(
            f"{self.prompt}: mean attention, per cent",
            ["picture", *words],
            [[row["file"], *(f"{100 * share:.2f}" for share in row["shares"].values())] for row in written],
            f"{output.ledger.rows} denoiser rows, {output.ledger.seconds:.1f} s; the maps are in {out}/maps.png",
        )

    def _phrases(self) -> list[Phrase]:
        """The words to draw, in the order of the prompt, or as they were given."""
        from steer.diffusion.controllers.compose.words import Phrase

        if not self.prompt.strip():
            raise ValueError("the prompt is empty: say what to draw.")
        if self.images < 1 or self.steps < 1:
            raise ValueError(f"--images {self.images} --steps {self.steps}: expected at least 1 of each.")
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"--start {self.start} --stop {self.stop}: expected 0 <= start < stop <= 1.")
        every = [Phrase(match.group(), match.start()) for match in re.finditer(WORD, self.prompt)]
        if not self.words:
            return every
        return [_asked(word, self.prompt, [phrase.text for phrase in every]) for word in self.words]

    def _generate(self, pipe: Any, controller: Any) -> Any:
        import torch

        import steer
        from steer.cli import running

        with running.steps_shown(f"maps on {self.model}", self.steps) as tell:
            return steer.Steered(pipe, controller)(
                self.prompt,
                n=1,
                num_images_per_prompt=self.images,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=torch.Generator().manual_seed(self.seed),
                callback_on_step_end=tell,
            )

    def _draw(self, out: Path, images: Sequence[Any], words: list[str], heat: list[list[Tensor]]) -> None:
        from steer.draw import contact_sheet, overlay, save_png

        tiles, captions = [], []
        for k, (image, heats) in enumerate(zip(images, heat)):
            save_png(image, out / f"{k}.png")
            tiles += [image, *(overlay(image, one) for one in heats)]
            captions += [f"{k}.png", *(f"{100 * float(one.mean()):.1f} %" for one in heats)]
        sheet = contact_sheet(tiles, 1 + len(words), column_labels=["picture", *words], captions=captions)
        save_png(sheet, out / "maps.png")


def _asked(word: str, prompt: str, words: list[str]) -> Phrase:
    """The first place of a word in a prompt. Raises ValueError if there is none."""
    from steer.diffusion.controllers.compose.words import Phrase
    from steer.rewards.border import unknown

    match = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.I) if word else None
    if match is None:
        raise unknown("word of the prompt", word, dict.fromkeys(words))
    return Phrase(match.group(), match.start())


def token_spans(pipe: Any, prompt: str, phrases: Sequence[Phrase]) -> list[tuple[int, ...]]:
    """For every phrase where its tokens stand in the text that the pipeline's network is given."""
    from steer.cli import running
    from steer.diffusion.controllers.compose.tokens import positions

    tokenizer = running.tokenizers_of(pipe)[0]
    return [positions(tokenizer, prompt, phrase) for phrase in phrases]
