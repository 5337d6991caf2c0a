"""The cases of all ops: one of each case_<op>.py beside this file."""

from importlib import import_module
from pathlib import Path

CASES = tuple(import_module(path.stem).CASE for path in sorted(Path(__file__).parent.glob("case_*.py")))
