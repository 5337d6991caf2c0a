"""Result rows that can be replayed from themselves, written so that nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any


def folder(path: Path) -> Path:
    """Make an output folder and prove that it can be written to, before any long work. Raises ValueError if not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to the folder {path}: {error.strerror}. Choose another with --out.") from error
    return path


def origin() -> dict[str, Any]:
    """What made a result: versions of the libraries that matter, and the commit of a checkout."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "-C", here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    libraries = ("steer", "torch", "diffusers", "transformers", "open_clip_torch")
    return {"versions": {name: version(name) for name in libraries}, "commit": found.stdout.strip() or None}


def config(command: Any) -> dict[str, Any]:
    """The dataclass of a command as a row: its name and its options."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(command).items()}
    return {"command": type(command).__name__.lower(), **options}


class Rows:
    """A results.jsonl: rows already there are read, a new row is on the disk before the next is begun."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            for line in path.read_text().splitlines():
                with suppress(json.JSONDecodeError):  # a killed run may leave half a line
                    self.rows.append(json.loads(line))

    def find(self, **wanted: Any) -> list[dict[str, Any]]:
        """The rows whose fields have these values."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())]

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Append rows; a killed run leaves the file as it was or with all of them."""
        self.replace([*self.rows, *rows])

    def replace(self, rows: list[dict[str, Any]]) -> None:
        """Put these rows in place of what was there."""
        self.rows = rows
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        part = self.path.with_suffix(".part")
        part.write_text(text)
        os.replace(part, self.path)
