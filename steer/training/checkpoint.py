"""Checkpoints of a training run: the last one, and the one before it in case the last is damaged."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from steer.draw.save import written

NAMES = ("last.pt", "previous.pt")


def save(folder: Path, content: dict[str, Any]) -> None:
    """Write the last checkpoint, whole or not at all; what was the last becomes the previous one."""
    last, previous = (folder / name for name in NAMES)
    with written(last) as beside:
        torch.save(content, beside)
        if last.exists():
            os.replace(last, previous)


def load(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint of a folder; where that is damaged, with a warning, the one before it; None if there is none.

    Raises ValueError where no checkpoint that is there can be read.
    """
    there = [folder / name for name in NAMES if (folder / name).exists()]
    for path in there:
        try:
            with ZipFile(path) as archive:  # torch.load does not look at its checksums
                if (part := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {part} is wrong")
            return torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # a damaged file raises whatever the archive's reader runs into
            warnings.warn(f"{path} is damaged and was left out: {error}", stacklevel=2)
    if there:
        raise ValueError(f"no checkpoint in {folder} can be read; delete the folder to begin anew.")
    return None
