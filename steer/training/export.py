"""What was learnt, as files that others read: a LoRA of diffusers, an adapter of peft, or a difference of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steer.draw.save import written
from steer.training.handle import Handle, Weights
from steer.training.weights.difference import Difference


def export(handle: Handle, base: Weights, folder: str | Path, pipe: Any = None) -> Path:
    """Write what a handle has learnt to a folder; returns the file.

    adapter.safetensors        with adapter_config.json, an adapter that is attached: `PeftModel.from_pretrained(base,
                               folder)`; of a network of `pipe`, `pipe.load_lora_weights(folder, weight_name=...)`
    difference.safetensors     changes of the model's own weights, `base` being those before: `Difference.load`
    trained.safetensors        the trained values of any other parametrisation, for `Handle.load`
    """
    folder = Path(folder)
    if hasattr(handle.model, "peft_config"):
        part = None if pipe is None else next(name for name, one in pipe.components.items() if one is handle.model)
        return _adapter(handle.model, folder, part)
    own = dict(handle.model.named_parameters())
    if set(handle.parameters) <= set(base) and own.keys() == base.keys():
        now = {name: own[name].detach() for name in base}
        return Difference.between({n: base[n] for n in base if not now[n].equal(base[n])}, now).save(
            folder / "difference.safetensors"
        )
    return _written(handle.weights(), folder / "trained.safetensors")


def _adapter(model: Any, folder: Path, part: str | None) -> Path:
    """Names as diffusers has them, behind that of a pipeline's part; or as peft has them."""
    from peft import get_peft_model_state_dict

    prefix = "base_model.model." if part is None else f"{part}."
    values = {prefix + name: value for name, value in get_peft_model_state_dict(model).items()}
    if part is not None:
        return _written(values, folder / "adapter.safetensors")
    model.peft_config["default"].save_pretrained(folder)
    return _written(values, folder / "adapter_model.safetensors")


def _written(values: Weights, path: Path) -> Path:
    from safetensors.torch import save

    with written(path) as beside:
        beside.write_bytes(save({name: value.detach().contiguous() for name, value in values.items()}))
    return path
