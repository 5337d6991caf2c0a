"""Wall-clock times that can be compared: alternating runs in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tqdm import tqdm

Opened = Callable[[], AbstractContextManager]


def alternating(
    calls: Mapping[Any, Callable[[], object]], rounds: int, inside: Mapping[Any, Opened] | None = None
) -> dict[Any, list[float]]:
    """Seconds of every call in every round, each round all calls by turns; a first round warms up and is dropped.

    inside  a context for each call, which is opened and closed around it off the clock
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(rounds + 1), desc="rounds"):
        for name, call in calls.items():
            with (inside or {}).get(name, nullcontext)():
                began = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - began)
    return {name: seconds[1:] for name, seconds in times.items()}


def ratio(times: list[float], others: list[float]) -> dict[str, Any]:
    """Median and quartiles of times / others, round by round."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(times, others)], n=4)
    return {"ratio": middle, "quartiles": [low, high]}
