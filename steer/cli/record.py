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
    options = {name: _plain(value) for name, value in asdict(command).items()}
    return {"command": type(command).__name__.lower(), **options}


def _plain(value: Any) -> Any:
    """Paths by their names."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return str(value) if isinstance(value, Path) else value


class Rows:
    """A results.jsonl: rows already there are read, a new row is on the disk before the next is begun.

    A killed run may leave a part of its last line: that is no row, and is taken away when the next row comes. Raises
    ValueError for any other line that is no JSON.
    """

    def __init__(self, path: Path):
        self.path = path
        *lines, self._rest = (path.read_bytes() if path.exists() else b"").split(b"\n")
        self.rows = [self._read(k, line) for k, line in enumerate(lines, 1) if line.strip()]
        with suppress(ValueError):  # a whole row that lacks no more than the end of its line is kept
            self.rows.append(json.loads(self._rest))

    def find(self, **wanted: Any) -> list[dict[str, Any]]:
        """The rows whose fields have these values."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())]

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        if self._rest:
            self.replace(self.rows)
        with self.path.open("ab") as file:
            file.write(_line(row))
        self.rows.append(row)

    def replace(self, rows: list[dict[str, Any]]) -> None:
        """Put these rows in place of what was there; a killed run leaves the one or the other."""
        part = self.path.with_suffix(".part")
        part.write_bytes(b"".join(map(_line, rows)))
        os.replace(part, self.path)
        self.rows, self._rest = [*rows], b""

    def _read(self, k: int, line: bytes) -> dict[str, Any]:
        try:
            return json.loads(line)
        except ValueError as error:
            raise ValueError(f"{self.path}, line {k} is no JSON: {error}. Delete it, and it is run again.") from error


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
