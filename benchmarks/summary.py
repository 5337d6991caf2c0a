"""From rows of pictures to a table of means with intervals, and of paired differences to plain sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steer import measure
from steer.compare import METHODS

COLUMNS = ("reward", "method", "target", "target - plain", "judge", "judge - plain", "diversity", "rows", "decodes")
"""What of an entry is shown."""


def values(rows: list[dict[str, Any]], field: str, method: str, reward: str) -> Tensor:
    """A field of one cell, (prompts), in the same order in every cell."""
    cell = [row for row in rows if row["method"] == method and row["reward"] == reward]
    ordered = sorted(cell, key=lambda row: (row["prompt"], row["seed"]))
    return torch.tensor([row[field] for row in ordered]).unflatten(0, (len({row["prompt"] for row in cell}), -1))


def diversities(pictures: list[list[dict[str, Tensor]]], method: str, reward: str) -> Tensor:
    """DIV of every prompt over its seeds, (prompts,); of plain sampling's pictures the first is taken."""
    seeds = [torch.cat([chunk[f"{method}|{reward}"] for chunk in chunks]) for chunks in pictures]
    return measure.diversity(torch.stack(seeds, 1).float() / 255)


def summarise(rows: list[dict[str, Any]], pictures: list[list[dict[str, Tensor]]]) -> list[dict[str, Any]]:
    """One entry a method and reward, with prompts as the bootstrap's units."""
    table = []
    for reward in dict.fromkeys(row["reward"] for row in rows):
        for method in METHODS:
            entry: dict[str, Any] = {"reward": reward, "method": method}
            for field in ("target", "judge"):
                own, plain = (values(rows, field, m, reward) for m in (method, "plain"))
                entry[field] = measure.interval(own)
                entry[f"{field} - plain"] = measure.interval(own - plain)
            entry["diversity"] = measure.interval(diversities(pictures, method, reward))
            entry |= {f: float(values(rows, f, method, reward).mean()) for f in ("rows", "decodes", "seconds")}
            table.append(entry)
        code, best = (values(rows, "target", m, reward) for m in ("code", "best-of-n"))
        table[-1]["target - best-of-n"] = measure.interval(code - best)
    return table
