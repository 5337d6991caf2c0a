"""The embedded world: small models and pictures that ship with the package, so that everything runs anywhere."""

from __future__ import annotations

import functools
import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

    from steer.transfer.net import AdaIN
    from steer.transfer.prediction import Arbitrary
    from steer.zoo.style import StyleNet

Net = TypeVar("Net", bound="nn.Module")
WEIGHTS = Path(__file__).parent / "weights"
PIPELINES = {"emoji-sd": {}, "emoji-flow": {"text_encoder_3": None, "tokenizer_3": None}}
"""Embedded pipeline -> what `from_pretrained` must be told: for a Stable Diffusion 3, that there is no T5."""
CALLS = {"emoji-flow": {"max_sequence_length": 1}}
"""Embedded pipeline -> what makes a call of it cheaper: no 256 rows of zeros in the place of T5."""
MODELS = (*PIPELINES, "emoji-clip", "emoji-judge", "emoji-style", "emoji-adain", "emoji-arbitrary", "emoji-vlm")


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
            f"the weights of {name} are missing from {WEIGHTS}; reinstall steer, or train it: "
            f"`steer world build --only {name}`."
        )
    return WEIGHTS / name


def load(model: str | os.PathLike, **kwargs: Any) -> Any:
    """A stock diffusers pipeline: "emoji" (emoji-sd) or "emoji-flow", else a folder or hub id for `from_pretrained`.

    Or of transformers: "smollm2", a (model, tokenizer), see `steer.zoo.smollm`, and "emoji-vlm", a (model, processor),
    see `steer.zoo.vlm`. kwargs go to `from_pretrained`; the embedded models default to float32. Raises ValueError for a
    name that is none of these, with close matches, and for weights that cannot be read; FileNotFoundError for embedded
    ones that are missing.
    """
    if str(model) == "smollm2":
        from steer.zoo import smollm

        return smollm.load(**kwargs)
    if str(model) == "emoji-vlm":
        from steer.zoo import vlm

        return vlm.load(folder("emoji-vlm"), **kwargs)

    import torch
    from diffusers import DiffusionPipeline

    name = "emoji-sd" if str(model) == "emoji" else str(model)
    if name in PIPELINES:
        return _read(DiffusionPipeline, folder(name), **{"dtype": torch.float32, **PIPELINES[name], **kwargs})
    if Path(model).is_dir():
        return _read(DiffusionPipeline, Path(model), **kwargs)
    if "/" not in str(model):
        near = get_close_matches(str(model), ("emoji", "smollm2", *MODELS), cutoff=0.5)
        raise ValueError(
            f"model {str(model)!r} is no folder and no hub id (owner/name){f'; did you mean {near}?' if near else ''}; "
            "'emoji' is the embedded pipeline, 'smollm2' the language model."
        )
    return DiffusionPipeline.from_pretrained(str(model), **kwargs)


def _read(cls: type, path: Path, **kwargs: Any):
    from safetensors import SafetensorError

    try:
        return cls.from_pretrained(str(path), local_files_only=True, **kwargs)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"the pipeline in {path} cannot be read: {error}. Download or save it again.") from error


@functools.cache
def style_net() -> StyleNet:
    """emoji-style: `StyleNet`, pictures (b, 3, h, w) in [0, 1] -> logits (b, 4) over `steer.zoo.data.STYLES`."""
    from steer.zoo.style import StyleNet

    return _filled(StyleNet(), "emoji-style")


@functools.cache
def adain_net() -> AdaIN:
    """emoji-adain: the encoder-decoder of `steer.transfer.stylize`."""
    from steer.transfer.net import AdaIN

    return _filled(AdaIN(), "emoji-adain")


@functools.cache
def arbitrary_net() -> Arbitrary:
    """emoji-arbitrary: the style prediction network, for `steer.transfer.stylize`."""
    from steer.transfer.prediction import Arbitrary

    return _filled(Arbitrary(), "emoji-arbitrary")


def _filled(net: Net, name: str) -> Net:
    """A network with the shipped weights in it, in float32, to be used and not trained."""
    from safetensors.torch import load_file

    net.load_state_dict({k: v.float() for k, v in load_file(folder(name) / "model.safetensors").items()})
    return net.eval().requires_grad_(False)
