"""What was learnt, written to files, read by the libraries whose formats they have, and put back on a fresh model."""

import pytest
import tiny
import tiny_models
import torch
from core_toys import same
from diffusers import DDIMScheduler
from peft import PeftModel
from safetensors.torch import load_file
from text_toys import task

from steer.training import own
from steer.training.diffusion.adapters import lora
from steer.training.diffusion.task import DiffusionTask
from steer.training.export import export, load
from steer.training.weights import attach, starts
from steer.training.weights.difference import Difference
from steer.training.weights.methods import diablo


def stirred(handle):
    generator = torch.Generator().manual_seed(0)
    handle.load({n: w + 0.1 * torch.randn(w.shape, generator=generator) for n, w in handle.weights().items()})
    return handle


def base_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_diffusers_reads_the_lora_of_a_pipelines_network(tmp_path):
    x, text = torch.randn(1, 4, 8, 8, generator=tiny.generator()), torch.randn(1, 5, 32, generator=tiny.generator())
    pipe, fresh = (tiny.pipeline(DDIMScheduler(num_train_timesteps=20)) for _ in range(2))
    base = base_of(pipe.unet)
    handle = stirred(lora(rank=2)(DiffusionTask.of(pipe, "red", num_inference_steps=2)))
    path = export(handle, base, tmp_path, pipe)
    fresh.load_lora_weights(path.parent, weight_name=path.name)
    plain = tiny.pipeline(DDIMScheduler(num_train_timesteps=20)).unet(x, 3, text).sample
    torch.testing.assert_close(fresh.unet(x, 3, text).sample, pipe.unet(x, 3, text).sample)
    assert not torch.allclose(fresh.unet(x, 3, text).sample, plain)


@pytest.mark.parametrize("parametrise", [attach.lora(2, 8.0), attach.rotated(4)])
def test_peft_reads_the_adapter_of_a_language_model(parametrise, tmp_path):
    one, ids = task(), tiny_models.tokens(2, 5)["input_ids"]
    base = base_of(one.model)
    handle = stirred(parametrise(one))
    export(handle, base, tmp_path)
    read = PeftModel.from_pretrained(task().model, tmp_path)
    torch.testing.assert_close(read(ids).logits, one.model(ids).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(read(ids).logits, task().model(ids).logits, atol=0.1)


def test_changes_of_the_models_own_weights_are_a_difference(tmp_path):
    one = task()
    base = base_of(one.model)
    stirred(own(one.model, lambda name, parameter: "q_proj" in name))
    path = export(own(one.model), base, tmp_path)
    other = task().model
    change = Difference.load(path)
    assert all("q_proj" in name for name in change.values)
    remove = change.apply(other)
    for name, weight in one.model.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), weight)
    remove()
    assert same(base_of(other), base)


def test_any_other_parametrisation_keeps_its_trained_values(tmp_path):
    one = task()
    base = base_of(one.model)
    handle = stirred(diablo(blocks=4).phases[0].parametrise(one))
    path = export(handle, base, tmp_path)
    assert path.name == "trained.safetensors"
    assert same(load_file(path), handle.weights())


def corda(one):
    return starts.corda("ipm", 2, 2, ("q_proj",), 4, 0)(one)


def unscaled(one):
    return attach.scaling(("k_proj",), ("down_proj",))(one)


def queries(one):
    return own(one.model, lambda name, parameter: "q_proj" in name)


@pytest.mark.parametrize("parametrise", [attach.lora(2, 8.0), attach.rotated(4), unscaled, corda, queries])
def test_what_was_exported_goes_on_a_fresh_model_and_off_again_bit_for_bit(parametrise, tmp_path):
    """An adapter that took a part of the base, as CorDA's, comes as a difference of both together."""
    one, other, ids = task(), task(), tiny_models.tokens(2, 5)["input_ids"]
    base = base_of(one.model)
    path = export(stirred(parametrise(one)), base, tmp_path)
    assert path.name == ("difference" if parametrise in (corda, queries) else "adapter_model") + ".safetensors"
    handle = load(tmp_path, other.model)
    wanted = one.model(ids).logits
    torch.testing.assert_close(other.model(ids).logits, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(wanted, task().model(ids).logits, atol=0.1)
    with handle.using(handle.start):
        torch.testing.assert_close(other.model(ids).logits, task().model(ids).logits)
    handle.detach()
    assert same(base_of(other.model), base)


def test_a_second_adapter_goes_on_where_the_first_is_merged(tmp_path):
    one = task()
    base = base_of(one.model)
    export(stirred(attach.lora(2, 8.0)(one)), base, tmp_path)
    other = task()
    handle = load(tmp_path, other.model)
    with pytest.raises(ValueError, match="merge the one that is there"):
        load(tmp_path, other.model)
    handle.merge()
    load(tmp_path, other.model)


@pytest.mark.parametrize("parametrise", [attach.lora(2, 8.0, ("q_proj",)), queries])
def test_what_another_model_learnt_is_refused_and_leaves_nothing(parametrise, tmp_path):
    one, other = task(), task("gpt2")
    export(stirred(parametrise(one)), base_of(task().model), tmp_path)
    before = dict(other.model.state_dict())
    with pytest.raises(ValueError, match="does not go on this GPT2LMHeadModel"):
        load(tmp_path, other.model)
    assert same(dict(other.model.state_dict()), before)


def test_values_of_an_own_parametrisation_ask_for_their_method(tmp_path):
    one = task()
    export(stirred(diablo(blocks=4).phases[0].parametrise(one)), base_of(task().model), tmp_path)
    with pytest.raises(ValueError, match="pass its parametrise"):
        load(tmp_path, task().model)
