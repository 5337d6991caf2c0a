"""From rows of pictures to a table of means with intervals, and of paired differences to plain sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steer import measure
from steer.cli import show

METHODS = ("plain", "best-of-n", "code")


def values(rows: list[dict[str, Any]], field: str, method: str, reward: str) -> Tensor:
    """A field of one cell, (prompts x seeds,): sorted so that a prompt's seeds stand in a row, alike in every cell."""
    cell = [row for row in rows if row["method"] == method and row["reward"] == reward]
    return torch.tensor([row[field] for row in sorted(cell, key=lambda row: (row["prompt"], row["seed"]))])


def diversities(pictures: list[list[dict[str, Tensor]]], method: str, reward: str) -> Tensor:
    """DIV of every prompt over its seeds, (prompts,)."""
    seeds = [torch.cat([chunk[f"{method}|{reward}"] for chunk in chunks]) for chunks in pictures]
    return measure.diversity(torch.stack(seeds, 1).flatten(0, 1).float() / 255, len(seeds))


def summarise(rows: list[dict[str, Any]], pictures: list[list[dict[str, Tensor]]], seeds: int) -> list[dict[str, Any]]:
    """Print and return one entry a method and reward, with prompts as the bootstrap's units."""
    table = []
    for reward in dict.fromkeys(row["reward"] for row in rows):
        for method in METHODS:
            entry: dict[str, Any] = {"reward": reward, "method": method}
            for field in ("target", "judge"):
                own, plain = (values(rows, field, m, reward) for m in (method, "plain"))
                entry[field] = measure.interval(own, seeds)
                entry[f"{field} - plain"] = measure.interval(own - plain, seeds)
            entry["diversity"] = measure.interval(diversities(pictures, method, reward))
            entry |= {f: float(values(rows, f, method, reward).mean()) for f in ("rows", "decodes", "seconds")}
            table.append(entry)
        code, best = (values(rows, "target", m, reward) for m in ("code", "best-of-n"))
        table[-1]["target - best-of-n"] = measure.interval(code - best, seeds)
    _print(table)
    return table


def _print(table: list[dict[str, Any]]) -> None:
    columns = ("target", "target - plain", "judge", "judge - plain", "diversity")
    rows = [
        [f"{e['reward']} / {e['method']}", *(str(e[c]) for c in columns), f"{e['rows']:.0f}", f"{e['decodes']:.0f}"]
        for e in table
    ]
    show.table("emoji-sd at equal denoiser rows; 95 % intervals", ["", *columns, "rows", "decodes"], rows)
