"""Work done in one process, in several, or on a Ray cluster: every cell is answered once, in whatever order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from typing import Any

Work = Callable[[Any], Any]
Answers = Iterator[tuple[Any, Any]]
RETRIES = 3


def finished(
    work: Work,
    tasks: Sequence[Any],
    workers: int = 1,
    ray: str | None = None,
    cpus: float = 1,
    gpus: float = 0,
) -> Answers:
    """(task, its result or the exception that it raised), as they come.

    workers  processes, which share the processors; 1: this one
    ray      address of a cluster, or "local"; each task asks it for `cpus` and `gpus`
    work     importable by name, where it does not run in this process

    A task whose worker dies is given to another one, up to `RETRIES` times; among processes so is what ran beside it.
    Raises ValueError for workers < 1, for workers and ray together, for a cluster that cannot be reached, and where ray
    is not installed.
    """
    if workers < 1 or (ray is not None and workers > 1):
        raise ValueError(
            f"workers = {workers}, ray = {ray!r}: expected at least 1 worker, and not more beside a cluster."
        )
    if ray is not None:
        return _cluster(work, tasks, ray, cpus, gpus)
    if workers > 1:
        return _pool(work, tasks, workers)
    return ((task, _tried(work, task)) for task in tasks)


def _tried(work: Work, task: Any) -> Any:
    try:
        return work(task)
    except Exception as error:
        return error


def _pool(work: Work, tasks: Sequence[Any], workers: int) -> Answers:
    """A dead worker breaks its whole pool: a new one goes on with what has no answer yet, what ran by then last."""
    left, broken = dict(enumerate(tasks)), BrokenProcessPool("every worker died before its first task")
    threads = max(1, (os.cpu_count() or 1) // workers)
    for _ in range(RETRIES + 1):
        with ProcessPoolExecutor(workers, get_context("spawn"), _share, (threads,)) as pool:
            futures: dict[Future[Any], int] = {}
            try:
                with suppress(BrokenProcessPool):
                    for k, task in left.items():
                        futures[pool.submit(_tried, work, task)] = k
                for future in as_completed(futures):
                    try:
                        answer = future.result()
                    except BrokenProcessPool as error:
                        broken = error
                        continue
                    yield left.pop(futures[future]), answer
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        if not left:
            return
        waiting = list(left.items())  # in the order in which they are begun, so that the first ones had been
        left = dict(waiting[workers:] + waiting[:workers])
    for task in left.values():
        yield task, broken


def _share(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _cluster(work: Work, tasks: Sequence[Any], address: str, cpus: float, gpus: float) -> Answers:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("ray is not installed; pip install 'steer[ray]', or use --workers.") from error
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"no Ray cluster answers at {address!r}: {error}. Start one, or use --ray local.") from error
    try:
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_tried)
        waiting = {remote.remote(work, task): task for task in tasks}
        while waiting:
            for done in ray.wait(list(waiting))[0]:
                try:
                    answer = ray.get(done)
                except RayError as error:
                    answer = error
                yield waiting.pop(done), answer
    finally:
        ray.shutdown()
