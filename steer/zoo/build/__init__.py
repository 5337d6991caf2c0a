"""Training of the embedded world, stage by stage, resumable: `build()` makes every file below `steer/zoo/weights`."""

from __future__ import annotations

import importlib
from pathlib import Path

CACHE = Path.home() / ".cache" / "steer" / "world"
STAGES = {"vae": 15.0, "clip": 5.0, "judge": 5.0, "style": 2.0, "sd": 60.0}  # minutes


def build(minutes: dict[str, float] | None = None, cache: Path = CACHE, only: str | None = None) -> None:
    """Run the stages in order (or `only` one); a finished stage costs seconds, a stopped one goes on."""
    for stage in STAGES:
        if only in (None, stage):
            budget = {**STAGES, **(minutes or {})}[stage]
            importlib.import_module(f".{stage}", __name__).train(Path(cache), budget)
