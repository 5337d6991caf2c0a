"""What is trained: weights of the targeted layers, or an adapter of peft beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from steer.training.handle import Handle, adapted, own
from steer.training.method import Parametrise
from steer.training.weights.task import Learnable, targeted


def weights(targets: Sequence[str] = (), biases: bool = False, dense: Sequence[str] = ()) -> Parametrise:
    """The layers' own weights, with their biases if so, and all of what is in the modules named as dense."""

    def parametrise(task: Learnable) -> Handle:
        layers = targeted(task.model, targets).values()
        trained = [layer.weight for layer in layers] + [layer.bias for layer in layers if biases]
        trained += [p for name in dense for p in task.model.get_submodule(name).parameters()]
        wanted = {id(parameter) for parameter in trained}
        return own(task.model, lambda name, parameter: id(parameter) in wanted)

    return parametrise


def beside(config: Callable[..., Any], targets: Sequence[str] = (), **settings: Any) -> Parametrise:
    """An adapter of peft beside the targeted layers: `beside(peft.LoraConfig, r=8, lora_alpha=16)`.

    Raises ValueError from peft for settings that do not fit.
    """
    return lambda task: adapted(task.model, config(target_modules=list(targeted(task.model, targets)), **settings))


def lora(rank: int, alpha: float, targets: Sequence[str] = (), rslora: bool = False) -> Parametrise:
    """W0 + s B A with A random, B = 0 and s = alpha / rank, with rslora alpha / sqrt(rank): arXiv 2106.09685."""

    def parametrise(task: Learnable) -> Handle:
        from peft import LoraConfig

        return beside(LoraConfig, targets, r=rank, lora_alpha=alpha, use_rslora=rslora)(task)

    return parametrise


def scaling(targets: Sequence[str], feedforward: Sequence[str]) -> Parametrise:
    """(IA)^3: learnt factors on what the targets put out, and on what goes into those that end a feed-forward."""

    def parametrise(task: Learnable) -> Handle:
        from peft import IA3Config

        inner = list(targeted(task.model, feedforward)) if feedforward else []
        outer = list(targeted(task.model, targets)) if targets else []
        return adapted(task.model, IA3Config(target_modules=outer + inner, feedforward_modules=inner))

    return parametrise


def rotated(block: int, targets: Sequence[str] = (), constraint: float | None = None) -> Parametrise:
    """OFT: inputs of the layers turned in blocks, by Cayley's orthogonal matrices; a constraint makes it COFT.

    peft's default is five terms of the inverse's series, which is orthogonal for small angles only: here it is exact.
    """

    def parametrise(task: Learnable) -> Handle:
        from peft import OFTConfig

        constrained = {} if constraint is None else {"coft": True, "eps": constraint}
        return beside(OFTConfig, targets, oft_block_size=block, use_cayley_neumann=False, **constrained)(task)

    return parametrise


def quantised(rank: int, alpha: float, targets: Sequence[str] = ()) -> Parametrise:
    """LoRA beside a base in 4 bits, QLoRA, arXiv 2305.14314. Merging requantises: keep the adapter instead.

    Nothing of the base is changed, so what peft's `prepare_model_for_kbit_training` casts to float32 is as it was.

    Raises ValueError for a base that is not in 4 bits, and where bitsandbytes, which holds one, is missing.
    """

    def parametrise(task: Learnable) -> Handle:
        if find_spec("bitsandbytes") is None:
            raise ValueError("QLoRA needs bitsandbytes, which is not installed: pip install bitsandbytes.")
        if not getattr(task.model, "is_loaded_in_4bit", False):
            raise ValueError(
                "QLoRA needs a base in 4 bits, and this one is not: load it with from_pretrained(..., "
                "quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', "
                "bnb_4bit_use_double_quant=True))."
            )
        return lora(rank, alpha, targets)(task)

    return parametrise
