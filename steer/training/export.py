"""What was learnt, as files and back: a LoRA of diffusers, an adapter of peft, or a difference of weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from steer.draw.save import written
from steer.training.handle import Handle, Weights, adapted, own
from steer.training.method import Parametrise
from steer.training.weights.difference import Difference

OF_PIPE, OF_MODEL = "adapter.safetensors", "adapter_model.safetensors"
DIFFERENCE, TRAINED = "difference.safetensors", "trained.safetensors"
PEFT = "base_model.model"  # before each name in its files


def export(handle: Handle, base: Weights, folder: str | Path, pipe: Any = None) -> Path:
    """Write what a handle has learnt to a folder; returns the file. `load` reads any of them.

    adapter.safetensors        with adapter_config.json, an adapter that is attached to a part of `pipe`; if it is a
                               LoRA, `pipe.load_lora_weights(folder, weight_name=...)` reads it too
    adapter_model.safetensors  with adapter_config.json, one of a model by itself: `PeftModel.from_pretrained(base,
                               folder)`
    difference.safetensors     changes of the model's own weights, `base` being those before: `Difference.load`; also
                               of an adapter whose start had changed them (CorDA), both together
    trained.safetensors        the trained values of any other parametrisation, for `Handle.load`
    """
    folder, model = Path(folder), handle.model
    now = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if hasattr(model, "peft_config"):
        frozen = {name.replace(".base_layer.", "."): value for name, value in now.items()}
        if all(frozen[name].equal(value) for name, value in base.items() if name in frozen):
            part = None if pipe is None else next(name for name, one in pipe.components.items() if one is model)
            return _adapter(model, folder, part)
        now = frozen | _with_adapter(model)
    elif not set(handle.parameters) <= set(base) or now.keys() != base.keys():
        return _written(handle.weights(), folder / TRAINED)
    changed = {name: value for name, value in base.items() if not now[name].equal(value)}
    return Difference.between(changed, now).save(folder / DIFFERENCE)


def load(folder: str | Path, model: Any, parametrise: Parametrise | None = None) -> Handle:
    """Put what `export` wrote on the model that it was learnt from; `handle.detach()` takes it off again.

    model        a pipeline, or a model by itself
    parametrise  for trained.safetensors alone: that of the method, `method(name, **dials).phases[0].parametrise`

    Raises ValueError for a folder that has none of the files, for one that cannot be read, and for what another model
    has learnt, as far as names and shapes tell.
    """
    folder = Path(folder)
    path = next((folder / name for name in (OF_PIPE, OF_MODEL, DIFFERENCE, TRAINED) if (folder / name).is_file()), None)
    if path is None:
        what = "has no file of a finished training" if folder.is_dir() else "is no folder"
        raise ValueError(f"{folder} {what}: expected what `steer train`, or `export` of steer.training.export, wrote.")
    read = {DIFFERENCE: _put_difference, TRAINED: partial(_put_values, parametrise)}.get(path.name, _put_adapter)
    try:
        return read(path, model)
    except ValueError as error:
        raise ValueError(f"{folder} does not go on this {type(model).__name__}: {error}") from error


def _with_adapter(model: nn.Module) -> Weights:
    """Weights of the layers that have an adapter beside them, both together."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {f"{name}.weight": one for name, one in model.named_modules() if isinstance(one, BaseTunerLayer)}
    return {n: (one.get_base_layer().weight + one.get_delta_weight("default")).detach() for n, one in layers.items()}


def _adapter(model: Any, folder: Path, part: str | None) -> Path:
    """Names as diffusers has them, behind that of a pipeline's part; or as peft has them."""
    from peft import get_peft_model_state_dict

    values = {f"{part or PEFT}.{name}": value for name, value in get_peft_model_state_dict(model).items()}
    model.peft_config["default"].save_pretrained(folder)
    return _written(values, folder / (OF_MODEL if part is None else OF_PIPE))


def _put_adapter(path: Path, model: Any) -> Handle:
    from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict

    if not (path.parent / "adapter_config.json").is_file():
        raise ValueError("adapter_config.json is missing.")
    values, part = _read(path), model
    prefix = next(iter(values)).partition(".")[0] if path.name == OF_PIPE else PEFT
    if path.name == OF_PIPE:
        part = getattr(model, "components", {}).get(prefix)
    if not isinstance(part, nn.Module) or hasattr(part, "peft_config"):
        raise ValueError(f"its adapter is of a {prefix} without one; merge the one that is there, if it is that.")
    config = PeftConfig.from_pretrained(str(path.parent))
    config.inference_mode = False
    handle = adapted(part, config)
    there = {f"{prefix}.{name}": value.shape for name, value in get_peft_model_state_dict(part).items()}
    if wrong := sorted({n: v.shape for n, v in values.items()}.items() ^ there.items()):
        handle.detach()
        raise ValueError(f"the adapter of another model has {wrong[:2]}.")
    set_peft_model_state_dict(part, {name.removeprefix(f"{prefix}."): value for name, value in values.items()})
    return handle


def _put_difference(path: Path, model: Any) -> Handle:
    from steer.diffusion.pipelines.families import family_of

    network = model if isinstance(model, nn.Module) else getattr(model, family_of(model).network)
    change = Difference.load(path)
    if strange := sorted(change.values.keys() - dict(network.named_parameters()).keys()):
        raise ValueError(f"it changes {strange[0]} of another model.")
    handle = own(network, lambda name, parameter: name in change.values)
    change.apply(network)
    return handle


def _put_values(parametrise: Parametrise | None, path: Path, model: Any) -> Handle:
    from steer.training.diffusion import DiffusionTask

    if parametrise is None:
        raise ValueError(f"{path.name} holds values of what its method alone attaches: pass its parametrise.")
    values = _read(path)
    handle = parametrise(DiffusionTask.of(model, "", num_inference_steps=2))
    try:
        handle.load(values)
    except ValueError:
        handle.detach()
        raise
    return handle


def _read(path: Path) -> Weights:
    """Raises ValueError for a file that is no safetensors, or has nothing in it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path.name} is damaged: {error}.") from error
    if not values:
        raise ValueError(f"{path.name} is empty.")
    return values


def _written(values: Weights, path: Path) -> Path:
    from safetensors.torch import save

    with written(path) as beside:
        beside.write_bytes(save({name: value.detach().contiguous() for name, value in values.items()}))
    return path
