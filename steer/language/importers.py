"""Vectors that others wrote. In all of these formats layer N is the output of decoder block N, 0 first, as it is here.

Two things a file does not say. Most tools fit the last block on `hidden_states[-1]`, which transformers gives behind
the final norm: that direction has another scale, and it is added before the norm (repeng, GrAInS). And llama.cpp's own
cvector-generator calls what it measured behind block N direction.N+1, so that it acts one block further on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer.language.tower import Part, Site
from steer.language.vectors import SteeringVector

LAYER_TYPES: dict[str, Part] = {"decoder_block": "block", "self_attn": "attention", "mlp": "mlp"}
"""What steering-vectors calls the parts of a block."""


def gguf() -> Any:
    """The package. Raises ValueError, with the cure, where it is not installed."""
    try:
        import gguf  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("GGUF files need the package gguf: pip install 'steer[language]'.") from error
    return gguf


def from_gguf(path: Path) -> SteeringVector:
    """A control vector of repeng, llama.cpp or this library; ours come back with norms and provenance.

    Raises ValueError for a GGUF that is no control vector, as a model is.
    """
    package = gguf()
    try:
        reader = package.GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is no GGUF file: {error}.") from error
    architecture = _text(reader, "general.architecture")
    named = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    if architecture != "controlvector" or not named or not all(re.fullmatch(r"direction\.\d+", name) for name in named):
        raise ValueError(
            f"{path} holds {len(named)} tensors of a {architecture!r}: expected a 'controlvector' of tensors "
            "direction.N."
        )
    directions = {Site(int(name.partition(".")[2])): v for name, v in named.items()}
    if ours := _text(reader, "steer.vector"):
        known = json.loads(ours)
        return SteeringVector(directions, known["norms"], known["provenance"])
    about = {"source": "GGUF control vector", "architecture": _text(reader, "controlvector.model_hint") or ""}
    return SteeringVector(directions, provenance=about)


def _text(reader: Any, name: str) -> str | None:
    field = reader.get_field(name)
    return None if field is None else bytes(field.parts[-1]).decode()


def from_svec(path: Path) -> SteeringVector:
    """AISteer360's .svec, JSON with directions (K, D) for each layer: K = 1, or the heads of ITI.

    Raises ValueError for another K: one direction for each token (ActAdd) or the two of a plane are no vector here.
    """
    try:
        content = json.loads(path.read_text())
        found = {int(k): torch.tensor(v) for k, v in content["directions"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no .svec of AISteer360: {type(error).__name__} {error}.") from error
    heads = content.get("num_heads") is not None
    if wrong := {k: tuple(v.shape) for k, v in found.items() if v.ndim > 1 and len(v) > 1 and not heads}:
        raise ValueError(f"{path}: directions {wrong} by layer; expected (1, width), one direction for all tokens.")
    part: Part = "heads" if heads else "block"
    about = {"source": "AISteer360", "architecture": str(content.get("model_type", ""))}
    return SteeringVector({Site(k, part): v.flatten() for k, v in found.items()}, provenance=about)


def from_torch(path: Path, layer: int | None = None) -> SteeringVector:
    """A .pt with tensors alone: one direction (CAA: vec_layer_12_model.pt), {layer: direction}, or what
    steering-vectors keeps, {"layer_activations": {layer: direction}, "layer_type": "decoder_block"}.

    Raises ValueError for a pickled object, which could run any code, for other contents, and for one direction without
    a layer in the name or the call.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each way to be no such file has its own
        raise ValueError(
            f"{path} holds more than tensors, or is no file of torch.save, and is not unpickled: that could run any "
            "code. Where it was made, write the tensors alone: torch.save(vector.layer_activations, path)."
        ) from error
    if isinstance(content, Tensor):
        named = re.search(r"layer_(\d+)", path.stem)
        if layer is None and named is None:
            raise ValueError(f"{path.name} holds one direction and does not say where: expected load(path, layer=...).")
        return _by_layer(path, {int(named[1]) if layer is None and named else layer: content}, "block")
    if layer is not None:
        raise ValueError(f"layer={layer}, and {path.name} says itself where its directions belong.")
    if isinstance(content, Mapping) and "layer_activations" in content:
        kind = content.get("layer_type", "decoder_block")
        if kind not in LAYER_TYPES:
            raise ValueError(f"{path}: layer_type {kind!r}; expected one of {tuple(LAYER_TYPES)}.")
        return _by_layer(path, content["layer_activations"], LAYER_TYPES[kind])
    return _by_layer(path, content, "block")


def from_tensors(path: Path) -> SteeringVector:
    """A safetensors file that is not ours, each tensor named by its layer: "12", "layer.12", "direction_12"."""
    from safetensors.torch import load_file

    return _by_layer(path, load_file(path), "block")


def _by_layer(path: Path, content: Any, part: Part) -> SteeringVector:
    """Directions by the number that each name is or ends in."""
    named = {str(k): v for k, v in content.items()} if isinstance(content, Mapping) else {}
    layers = {name: re.fullmatch(r"(?:[a-z_.]*[._])?(\d+)", name) for name in named}
    if not named or not all(layers[name] and _is_direction(v) for name, v in named.items()):
        what = sorted(named) or type(content).__name__
        raise ValueError(f"{path} holds {what}: expected one direction (width,) for each layer, named by its number.")
    directions = {Site(int(match[1]), part): named[name].flatten() for name, match in layers.items() if match}
    return SteeringVector(directions, provenance={"source": path.name})


def _is_direction(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1 and value.numel() == max(value.shape)


READERS: dict[str, Callable[..., SteeringVector]] = {
    ".safetensors": from_tensors,
    ".gguf": from_gguf,
    ".svec": from_svec,
    ".pt": from_torch,
    ".pth": from_torch,
}
