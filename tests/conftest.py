"""Makes the helpers of this folder (`tiny`, ...) importable from the tests below it."""

import os

import torch
from hypothesis import settings

settings.register_profile("steer", deadline=None)  # how long an example takes says more of the machine than of the code
settings.load_profile("steer")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the processes of one run share the cores
