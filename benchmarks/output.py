"""Where the numbers of a benchmark go: the terminal, RESULTS/NAME.json, and a page between its comments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from steer.bench.tables import table
from steer.cli import record, show
from steer.cli.page import Part


def alike(results: record.Rows, fields: Sequence[str], config: dict[str, Any]) -> None:
    """Raises ValueError for a results file whose rows other values of some options have made."""
    for field in fields:
        if other := [row["config"][field] for row in results.rows if row["config"][field] != config[field]]:
            raise ValueError(f"{results.path} was made with {field} = {other[0]}: give the same, or another --out.")


def part_of(bench: Any) -> Part | None:
    """Where the page that a benchmark's options name has its table. Raises ValueError if nowhere."""
    return None if bench.into is None else Part(bench.into, f"python -m benchmarks.{record.config(bench)['command']}")


def write(bench: Any, content: dict[str, Any]) -> None:
    """RESULTS/NAME.json: what was measured, and what made it; NAME is that of the options' class, and of its module.

    Where its files go is no part of what made it.
    """
    config = {name: value for name, value in record.config(bench).items() if name not in ("out", "results", "into")}
    row = {"config": config, **record.origin(), **content}
    (bench.results / f"{config['command']}.json").write_text(json.dumps(row, indent=1) + "\n")


def tabulate(lines: Sequence[dict[str, Any]], title: str, part: Part | None) -> None:
    """Print lines of equal columns as a table, and put it on a page."""
    shown = [{name: text(value) for name, value in line.items()} for line in lines]
    show.table(title, list(shown[0]), [list(line.values()) for line in shown])
    if part is not None:
        part.write(table(shown))


def text(value: Any) -> str:
    """A value in a table: four digits of a number, three decimals of an interval."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return f"[{', '.join(map(text, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
