"""Vectors as files: safetensors with all that a vector knows, GGUF for llama.cpp and repeng, and lm-eval's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from steer.draw.save import written
from steer.language import importers
from steer.language.tower import module_at, site
from steer.language.vectors import SteeringVector, fitted_to


def save(vector: SteeringVector, path: str | Path) -> Path:
    """Write a vector and return the path: .safetensors, or .gguf as a control vector that llama.cpp and repeng read.

    Equal vectors give equal bytes, and the file appears when it is complete. Of safetensors each tensor is named by
    its site ("12", "12.heads"); norms and provenance stand in the metadata.

    GGUF has the tensor direction.N for the output of block N, 0 first: llama.cpp's `llama_adapter_cvec` adds it there,
    repeng wraps the block of that number. Neither knows a block 0 (llama.cpp refuses the file), nor another part than
    the block's output. Both add scale x direction to every token, with no regard to its norm: `absolute` makes a
    vector for which scale 1 is a strength of ours.

    Raises ValueError for another suffix, a folder that cannot be written to, and what GGUF cannot hold.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        content = _safetensors(vector)
        with written(path) as part:
            part.write_bytes(content)
    elif path.suffix == ".gguf":
        _gguf(vector, path)
    else:
        raise ValueError(f"{path.name}: expected a name that ends in .safetensors or .gguf.")
    return path


def load(path: str | Path, layer: int | None = None) -> SteeringVector:
    """Read a vector: ours, or a file of repeng, llama.cpp, steering-vectors, CAA or AISteer360, see `importers`.

    layer  of a file that holds one direction and does not say where it belongs

    Nothing is unpickled. Raises ValueError for a file that is none of these, with what it was.
    """
    path = Path(path)
    if path.suffix not in importers.READERS:
        raise ValueError(f"{path.name}: expected a file that ends in one of {tuple(importers.READERS)}.")
    if not path.is_file():
        raise ValueError(f"no file {path}.")
    if layer is not None and path.suffix not in (".pt", ".pth"):
        raise ValueError(f"layer={layer}, and {path.name} says itself where its directions belong.")
    if path.suffix == ".safetensors" and (ours := _ours(path)) is not None:
        return ours
    reader = importers.READERS[path.suffix]
    return reader(path) if layer is None else reader(path, layer)


def absolute(vector: SteeringVector, strength: float) -> SteeringVector:
    """strength x norm x v / |v| at each site: what a relative strength adds to a state of median norm, for programs
    that add directions as they are. Raises ValueError for a vector without norms."""
    if missing := [str(place) for place in vector.sites if place not in vector.norms]:
        raise ValueError(
            f"sites {missing}: no norms to be relative to; expected a fitted vector, or scale it yourself."
        )
    sized = {place: strength * vector.norms[place] * v / v.norm() for place, v in vector.directions.items()}
    return SteeringVector(sized, vector.norms, dict(vector.provenance) | {"absolute": f"{strength:g}"})


def to_lm_eval(vector: SteeringVector, path: str | Path, model: Any, strength: float = 1.0) -> Path:
    """Write a vector for lm-evaluation-harness: `lm_eval --model steered --model_args pretrained=...,steer_path=x.pt`.

    It adds strength x direction to every token at the modules named in the file, which it looks up in
    `model.base_model`: so a model of the same class is needed here. See `absolute` for the strength.
    Raises ValueError for a name that does not end in .pt, for sites at heads, and for a vector of another model.
    """
    path, fitted = Path(path), fitted_to(vector, model)
    if path.suffix != ".pt" or any(place.part == "heads" for place in fitted.sites):
        raise ValueError(f"{path.name}, sites {[str(s) for s in fitted.sites]}: expected a .pt, and no site at heads.")
    names = {module: name for name, module in model.base_model.named_modules()}
    content = {
        names[module_at(model, place)]: {
            "steering_vector": v.cpu()[None],
            "steering_coefficient": float(strength),
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for place, v in fitted.directions.items()
    }
    with written(path) as part:
        torch.save(content, part)
    return path


def _about(vector: SteeringVector) -> str:
    norms = {str(place): size for place, size in vector.norms.items()}
    return json.dumps({"norms": norms, "provenance": dict(vector.provenance), "version": 1}, sort_keys=True)


def _safetensors(vector: SteeringVector) -> bytes:
    from safetensors.torch import save

    # one entry of metadata: safetensors writes several in any order
    tensors = {str(place): v.cpu().contiguous() for place, v in vector.directions.items()}
    return save(tensors, {"steer": _about(vector)})


def _ours(path: Path) -> SteeringVector | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get("steer")
            directions = {} if about is None else {site(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}.") from error
    if about is None:
        return None
    known = json.loads(about)
    return SteeringVector(directions, known["norms"], known["provenance"])


def _gguf(vector: SteeringVector, path: Path) -> None:
    gguf = importers.gguf()
    if others := [str(place) for place in vector.sites if place.part != "block" or place.layer < 1]:
        raise ValueError(
            f"sites {others}: a control vector has outputs of blocks from 1 on. Leave the others out, as in "
            "vector[1, 2, 3], and count layers from the first (`vectors.fitted_to`)."
        )
    with written(path) as part:
        writer = gguf.GGUFWriter(part, "controlvector")
        writer.add_string("controlvector.model_hint", vector.provenance.get("architecture", "unknown"))
        writer.add_uint32("controlvector.layer_count", len(vector.sites))
        writer.add_string("steer.vector", _about(vector))  # readers pass over keys that they do not know
        for place in sorted(vector.sites):
            writer.add_tensor(f"direction.{place.layer}", vector.directions[place].cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
