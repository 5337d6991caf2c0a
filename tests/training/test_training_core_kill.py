"""Two real processes: one that is killed in the middle of a run, and one that goes on from what it left."""

import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import core_toys
import torch
from core_toys import RUN, same, trained

from steer.training import checkpoint


def step_of(folder: Path) -> int:
    """Of the last checkpoint that is there at this moment."""
    try:
        return torch.load(folder / "last.pt", weights_only=True)["step"]
    except (OSError, RuntimeError, EOFError):
        return 0


def test_a_process_killed_in_the_middle_leaves_a_run_that_goes_on_to_the_same_weights(tmp_path):
    process = subprocess.Popen([sys.executable, core_toys.__file__, tmp_path])
    end = time.monotonic() + 300
    while step_of(tmp_path) < 2 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 2 <= checkpoint.load(tmp_path)["step"] < RUN.steps
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the last checkpoint is whole
        handle, log = trained(tmp_path)
    expected, all_of_it = trained()
    assert same(handle.weights(), expected.weights())
    assert log == all_of_it
