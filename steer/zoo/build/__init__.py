"""Training of the embedded world, stage by stage, resumable: `build()` makes every file below `steer/zoo/weights`."""

from __future__ import annotations

from pathlib import Path

CACHE = Path.home() / ".cache" / "steer" / "world"
MINUTES = {
    "vae": 14.0,
    "emoji-clip": 9.0,
    "emoji-judge": 5.0,
    "emoji-style": 4.0,
    "features": 4.0,
    "emoji-adain": 8.0,
    "emoji-arbitrary": 8.0,
    "emoji-sd-coarse": 180.0,
    "emoji-sd": 180.0,
    "emoji-flow": 68.0,
    "emoji-vlm-eyes": 15.0,
    "emoji-vlm": 40.0,
}


def build(minutes: dict[str, float] | None = None, cache: Path = CACHE, only: str | None = None) -> None:
    """Run the stages in order (or `only` one); a finished stage costs seconds, a stopped one goes on."""
    for stage in MINUTES:
        if only in (None, stage):
            run(stage, Path(cache), {**MINUTES, **(minutes or {})}[stage])


def run(stage: str, cache: Path, minutes: float) -> None:
    """One stage; raises ValueError for an unknown one."""
    from . import dual, flow, sd, style, transfer, vae, vlm

    stages = {
        "vae": vae.train,
        "emoji-clip": lambda cache, minutes: dual.train("emoji-clip", cache, minutes),
        "emoji-judge": lambda cache, minutes: dual.train("emoji-judge", cache, minutes),
        "emoji-style": style.train,
        "features": transfer.train_features,
        "emoji-adain": transfer.train_adain,
        "emoji-arbitrary": transfer.train_arbitrary,
        "emoji-sd-coarse": sd.train_coarse,
        "emoji-sd": sd.train,
        "emoji-flow": flow.train,
        "emoji-vlm-eyes": vlm.train_eyes,
        "emoji-vlm": vlm.train,
    }
    if stage not in stages:
        raise ValueError(f"no stage is called {stage!r}: expected one of {tuple(stages)}.")
    stages[stage](cache, minutes)
