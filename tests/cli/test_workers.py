"""Work in several processes or on a cluster, where a worker dies: no task is lost, and none is done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from steer.bench import workers

ROOT = Path(__file__).parents[2]


def elsewhere(*command: str) -> str:
    """What a Python of its own prints."""
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def answers_once(folder: Path, **how) -> None:
    said = elsewhere(str(Path(__file__).with_name("bench_work.py")), str(folder), json.dumps(how))
    answers = json.loads(said.splitlines()[-1])
    assert sorted(i for i, _ in answers) == list(range(6))
    values = dict(answers)
    assert [values[i] for i in range(5)] == [0, 1, 4, 9, 16]
    assert "no 5" in values[5]
    assert (folder / "died").exists()


class Fragile:
    """A pool of processes that is broken for good by the task 1, like a real one by a worker that dies."""

    opened = 0

    def __init__(self, *how):
        Fragile.opened += 1
        self.broken = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def shutdown(self, wait=True, cancel_futures=False):
        pass

    def submit(self, tried, work, task):
        future = Future()
        self.broken = self.broken or (BrokenProcessPool("it died") if task == 1 else None)
        if self.broken and Fragile.opened == 2:  # it may also be known by then
            raise self.broken
        future.set_exception(self.broken) if self.broken else future.set_result(tried(work, task))
        return future


def test_a_cell_that_kills_every_worker_takes_none_with_it_but_its_neighbours(monkeypatch):
    monkeypatch.setattr(Fragile, "opened", 0)
    monkeypatch.setattr(workers, "ProcessPoolExecutor", Fragile)
    answers = list(workers.finished(lambda task: task * task, range(8), workers=2))
    assert sorted(task for task, _ in answers) == list(range(8))
    assert {task: answer for task, answer in answers if task not in (1, 2)} == {k: k * k for k in (0, 3, 4, 5, 6, 7)}
    assert isinstance(dict(answers)[1], BrokenProcessPool)
    assert Fragile.opened == workers.RETRIES + 1


@pytest.mark.slow
def test_no_cell_is_lost_or_doubled_when_a_process_is_killed(tmp_path):
    answers_once(tmp_path, workers=2)


@pytest.mark.slow
def test_no_cell_is_lost_or_doubled_when_a_ray_worker_is_killed(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'steer[ray]'")
    answers_once(tmp_path, ray="local")
