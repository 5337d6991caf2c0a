"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def save_png(figure: Image | Figure, path: str | Path) -> Path:
    """Write a PIL picture or a matplotlib figure as PNG and return its path; makes the folder if need be.

    The file appears under its name when it is complete: it is written beside it and then renamed. Raises ValueError
    where the folder cannot be written to, and for a name that does not end in .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"save_png: {path.name!r} does not end in .png; name it {path.stem}.png.")
    with written(path) as beside:
        if hasattr(figure, "savefig"):
            figure.savefig(beside, format="png", facecolor="white")
        else:
            figure.save(beside, format="PNG")
    return path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which takes its place when all went well. Makes the folder if need be.

    Raises ValueError for a folder that cannot be written to.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
    except OSError as error:
        raise ValueError(
            f"cannot write to the folder {path.parent}: {error.strerror}. Choose another folder."
        ) from error
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
