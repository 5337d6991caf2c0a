"""Parity needs either a GPU or Triton's interpreter, which must be chosen before Triton is imported."""

import os

import torch

runnable = os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available()
collect_ignore = [] if runnable else ["test_kernel_parity.py"]
