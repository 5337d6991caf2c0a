"""Runs what is said of kernels where they are interpreted on the CPU, so that it needs no GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from all_cases import CASES

pytest.importorskip("triton")


def passed(name):
    """How many tests of a file pass in Triton's interpreter, where none fails."""
    file = Path(__file__).with_name(name)
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(file)],
        cwd=file.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[-2000:]
    return int(re.search(r"(\d+) passed", child.stdout)[1])


def test_kernels_agree_with_their_references_under_the_interpreter():
    expected = sum(len(case.mutations) + sum(len(list(case.inputs(dtype))) for dtype in case.dtypes) for case in CASES)
    assert passed("test_kernel_parity.py") == expected


def test_the_step_by_kernels_is_the_step_under_the_interpreter():
    assert passed("test_kernel_step.py") > 0
