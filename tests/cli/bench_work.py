"""Work for other processes: `python bench_work.py FOLDER '{"workers": 2}'` prints every task and its answer as JSON.

A program of its own, since new processes begin with the main module of the one that wants them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path


def squared(task: tuple[str, int]) -> int:
    """i * i; the first process that is given 1 dies of it, and 5 is refused."""
    folder, i = task
    mark = Path(folder) / "died"
    if i == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if i == 5:
        raise ValueError("no 5")
    return i * i


if __name__ == "__main__":
    from steer.bench import finished

    answers = finished(squared, [(sys.argv[1], i) for i in range(6)], **json.loads(sys.argv[2]))
    print(json.dumps([[i, answer if isinstance(answer, int) else str(answer)] for (_, i), answer in answers]))
