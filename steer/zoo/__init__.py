"""The embedded world: small models and pictures that ship with the package, so that everything runs anywhere."""

from __future__ import annotations

import functools
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"
MODELS = ("emoji-sd", "emoji-clip", "emoji-judge", "emoji-style")


def folder(name: str) -> Path:
    """The folder of one of the shipped models, `MODELS`.

    Raises ValueError for a name that is none of them, and FileNotFoundError when its weights are not there.
    """
    if name not in MODELS:
        near = get_close_matches(name, MODELS)
        raise ValueError(
            f"no embedded model is called {name!r}{f'; did you mean {near}?' if near else ''} Expected one of {MODELS}."
        )
    if not (WEIGHTS / name).is_dir():
        raise FileNotFoundError(
            f"the weights of {name} are missing from {WEIGHTS}; reinstall steer, or run `steer world build`."
        )
    return WEIGHTS / name


def load(model: str | os.PathLike, **kwargs: Any) -> Any:
    """A stock diffusers pipeline: "emoji" is the embedded one, else a folder or hub id for `from_pretrained`.

    kwargs go to `from_pretrained`; the embedded pipeline defaults to float32. Raises ValueError for a name that is
    neither, with close matches, and for weights that cannot be read.
    """
    import torch
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    if str(model) in ("emoji", "emoji-sd"):
        return _read(StableDiffusionPipeline, folder("emoji-sd"), dtype=torch.float32, **kwargs)
    if Path(model).is_dir():
        return _read(DiffusionPipeline, Path(model), **kwargs)
    if "/" not in str(model):
        near = get_close_matches(str(model), ("emoji", *MODELS), cutoff=0.5)
        raise ValueError(
            f"model {str(model)!r} is no folder and no hub id (owner/name){f'; did you mean {near}?' if near else ''}; "
            "'emoji' is the embedded pipeline."
        )
    return DiffusionPipeline.from_pretrained(str(model), **kwargs)


def _read(cls: type, path: Path, **kwargs: Any):
    from safetensors import SafetensorError

    try:
        return cls.from_pretrained(str(path), local_files_only=True, **kwargs)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"the pipeline in {path} cannot be read: {error}. Download or save it again.") from error


@functools.cache
def style_net():
    """emoji-style: `StyleNet`, pictures (b, 3, h, w) in [0, 1] -> logits (b, 4) over `steer.zoo.data.STYLES`."""
    from safetensors.torch import load_file

    from steer.zoo.style import StyleNet

    net = StyleNet()
    net.load_state_dict({k: v.float() for k, v in load_file(folder("emoji-style") / "model.safetensors").items()})
    return net.eval().requires_grad_(False)
