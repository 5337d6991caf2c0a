"""What attribution refuses: names that are none, prompts that do not fit, models without a backward."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import made, text_model, tokenizer
from torch import nn

from steer.language.data import Pair
from steer.language.grains.attribute import attribute

SHORT = Pair("<s>Is the cat good and happy?", " Yes", " No")


def llama(dtype=torch.float64):
    return text_model("llama", dtype)


@pytest.fixture(autouse=True)
def gaps_are_fine():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="integrated gradients")
        yield


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "saliency"}, "expected one of"),
        ({"baseline": "black"}, "expected one of"),
        ({"steps": (20, 40)}, "triple"),
        ({"steps": 0}, "triple"),
        ({"batch": 0}, "at least 1"),
        ({"reduction": "max"}, "reduction"),
        ({"method": "captum", "baseline": "zero"}, "baseline of tokens"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        attribute(llama(), tokenizer(), SHORT, **given)


def test_bad_pairs():
    with pytest.raises(ValueError, match="positive"):
        attribute(llama(), tokenizer(), Pair("a cat", "", " No"))
    with pytest.raises(ValueError, match="context"):
        attribute(llama(), tokenizer(), replace(SHORT, prompt=SHORT.prompt * 99))


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()


@pytest.mark.parametrize("broken", [NoBackward.apply, torch.Tensor.detach])
def test_kernels_without_a_backward_are_refused(broken):
    model = made(type(llama()), llama().config, torch.float32)
    model.model.norm.register_forward_hook(lambda module, args, output: broken(output))
    with pytest.raises(ValueError, match="occlusion"):
        attribute(model, tokenizer(), SHORT, steps=2)
    assert attribute(model, tokenizer(), SHORT, "occlusion").scores.abs().sum() > 0


@pytest.mark.parametrize("part", ["", "mlp", "self_attn", "lm_head"])
@pytest.mark.filterwarnings("ignore:.*deprecat")
def test_int8_layers_are_refused(part):
    """torch's own have no backward, and where only some are quantised some gradient still flows, not its own."""
    model = made(type(llama()), llama().config, torch.float32)
    linear = {name for name, module in model.named_modules() if type(module) is nn.Linear and part in name}
    quantised = torch.ao.quantization.quantize_dynamic(model, linear, dtype=torch.qint8)
    with pytest.raises(ValueError, match="quantised"):
        attribute(quantised, tokenizer(), SHORT, steps=2)
    assert attribute(quantised, tokenizer(), SHORT, "occlusion").scores.abs().sum() > 0


def test_a_quantiser_that_cannot_train_is_refused():
    """Past kernels without a backward some gradient still flows, along the residual stream: it is not the gradient."""
    model = made(type(llama()), llama().config, torch.float32)
    model.hf_quantizer = SimpleNamespace(is_trainable=False)
    with pytest.raises(ValueError, match="quantised"):
        attribute(model, tokenizer(), SHORT, steps=2)
    model.hf_quantizer = SimpleNamespace(is_trainable=True)
    attribute(model, tokenizer(), SHORT, steps=2)
