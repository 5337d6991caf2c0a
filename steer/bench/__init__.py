"""The suite of searches at equal denoiser rows: what `steer bench search` runs, open to methods of yours.

>>> METHODS["mine"] = Entry(lambda reward, size, block=5: [MySearch(reward, block)])
>>> row = run(Cell("emoji-sd", "mine:block=2", "clip", budget=320))
"""

from steer.bench.cell import Cell
from steer.bench.cells import cells_of, run
from steer.bench.methods import BASELINE, METHODS, PUBLISHED, Entry, Size
from steer.bench.problem import Found, Problem
from steer.bench.spec import method
from steer.bench.workers import finished

__all__ = [
    "BASELINE",
    "METHODS",
    "PUBLISHED",
    "Cell",
    "Entry",
    "Found",
    "Problem",
    "Size",
    "cells_of",
    "finished",
    "method",
    "run",
]
