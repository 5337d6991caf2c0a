"""Makes the helpers of this folder (`tiny`, ...) and the benchmarks importable from the tests below it."""

import os
import sys
from pathlib import Path

import torch
from hypothesis import settings

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks are no part of the package
settings.register_profile("steer", deadline=None)  # how long an example takes says more of the machine than of the code
settings.load_profile("steer")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the processes of one run share the cores
