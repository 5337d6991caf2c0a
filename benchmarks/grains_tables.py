"""The tables of benchmarks.grains: rows as they were measured -> lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from steer.measure import interval


def reading_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("data", "form", "statements", "area")} for row in rows]


def attribution_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drops of the margin, and both intervals that have to be above 0."""
    lines = []
    kinds = ("data", "form", "words", "k", "method", "asked")
    for kind in dict.fromkeys(tuple(row[key] for key in kinds) for row in rows):
        own = [row for row in rows if tuple(row[key] for key in kinds) == kind]
        value = {key: torch.tensor([row[key] for row in own]) for key in ("I+", "I-", "random+", "random-", "gap")}
        lowers, raises = interval(value["I+"] - value["random+"]), interval(value["random-"] - value["I-"])
        means = {key: float(value[key].mean()) for key in ("I+", "random+", "I-", "random-")}
        gap = None if value["gap"].isnan().all() else float(value["gap"].median())
        lines.append(
            {**dict(zip((*kinds[:-1], "baseline"), kind)), "pairs": len(own), "median gap": gap}
            | means
            | {"I+ - random": list(lowers), "random - I-": list(raises), "passed": min(lowers.low, raises.low) > 0}
        )
    return lines


def gaps_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median and pooled gap of each baseline, by points."""
    lines = []
    kinds = ("data", "form", "words", "baseline")
    for kind in dict.fromkeys(tuple(row[key] for key in kinds) for row in rows):
        own = [row for row in rows if tuple(row[key] for key in kinds) == kind]
        line: dict[str, Any] = {**dict(zip(kinds, kind)), "pairs": len({row["pair"] for row in own})}
        for steps in sorted({row["steps"] for row in own}):
            error, whole = torch.tensor([(r["error"], r["difference"]) for r in own if r["steps"] == steps]).abs().T
            line |= {
                f"median, {steps}": float((error / whole).median()),
                f"pooled, {steps}": float(error.sum() / whole.sum()),
            }
        lines.append(line | {"used": ", ".join(sorted({row["used"] for row in own}))})
    return lines


def speed_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds of ours and of captum, their ratio pair by pair, how far their scores are apart, and peaks of memory."""
    lines = []
    for name in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == name]
        middle = {key: float(torch.tensor([row[key] for row in own]).median()) for key in ("ours", "captum")}
        ratios = sorted(row["captum"] / row["ours"] for row in own)
        lines.append(
            {"data": name, "pairs": len(own), "steps": own[0]["steps"], "response tokens": [r["response"] for r in own]}
            | {"ours, s": middle["ours"], "captum, s": middle["captum"], "captum / ours": [round(r, 2) for r in ratios]}
            | {"apart at most": max(row["apart"] for row in own), "gap": max(row["gap"] for row in own)}
            | {"ours, MB": own[0].get("ours_mb"), "captum, MB": own[0].get("captum_mb")}
        )
    return lines


TABLES = {"reading": reading_table, "attribution": attribution_table, "gaps": gaps_table, "speed": speed_table}
