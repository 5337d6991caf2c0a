"""Writing shipped weights: half precision, safetensors, whole folders at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import nn

from .. import WEIGHTS


def write_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """Fill a temporary folder and put it in place of `weights/name` in one move."""
    final, part = WEIGHTS / name, WEIGHTS / f"{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    fill(part)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    return final


def save_half(model: nn.Module, path: Path) -> None:
    """The state dict as contiguous float16 safetensors; integer buffers keep their type."""
    from safetensors.torch import save_file

    state = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    save_file(state, path)


def save_json(content: dict, path: Path) -> None:
    """Readable JSON with a last newline."""
    path.write_text(json.dumps(content, indent=1) + "\n")
