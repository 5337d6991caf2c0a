"""`steer world`: train the embedded models, or measure the shipped ones again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import subcommand


@dataclass(frozen=True)
class Build:
    """Train the embedded models from public packages, resumably: a stopped build goes on where it was.

    Needs the `train` extra. The pictures are drawn again only with --render, which also needs npm.
    Example: steer world build --only emoji-sd --minutes 120
    """

    only: str | None = None
    """one stage; default all, in this order: vae, emoji-clip, emoji-judge, emoji-style, features, emoji-adain,
    emoji-arbitrary, emoji-sd-coarse, emoji-sd, emoji-flow, emoji-vlm-eyes, emoji-vlm; the last two need SmolLM2"""
    minutes: float | None = None
    """training time of that stage; a longer time than before trains on from the last checkpoint"""
    cache: Path = field(default_factory=lambda: Path.home() / ".cache" / "steer" / "world")
    """folder of checkpoints"""
    render: bool = False
    """draw the pictures again from the icon packages first"""

    def run(self) -> None:
        from steer.zoo import build

        if self.minutes is not None and self.only is None:
            raise ValueError("--minutes is the time of one stage: name it with --only.")
        if self.render:
            from steer.zoo.build.render import render

            render(self.cache)
        build.build({} if self.minutes is None else {self.only: self.minutes}, self.cache, self.only)


@dataclass(frozen=True)
class Check:
    """Measure the embedded models: the numbers of the model card, beside the same numbers for real pictures.

    Example: steer world check --names 74
    """

    only: str | None = None
    """one pipeline, or emoji-vlm; default all that are there"""
    names: int = 297
    """how many names to generate with each pipeline, evenly spread, each in all four styles"""
    steps: int = 25
    guidance: float = 3.0
    seed: int = 0
    out: Path = Path("steer-out/world")
    """folder of the contact sheets and card.json"""

    def run(self) -> None:
        from steer.cli import answers, card

        if self.only != "emoji-vlm":
            card.check(self)
        if self.only == "emoji-vlm" or (self.only is None and answers.there()):
            answers.check(self)


@dataclass(frozen=True)
class World:
    """The embedded models and pictures.

    Examples: steer world check, steer world build --only emoji-sd
    """

    action: (
        Annotated[Build, subcommand("build", prefix_name=False)]
        | Annotated[Check, subcommand("check", prefix_name=False)]
    )

    def run(self) -> None:
        self.action.run()
