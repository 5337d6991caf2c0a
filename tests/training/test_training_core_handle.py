"""A handle: policies by values, the ways out of a model, and what is refused on the way in."""

import pytest
import torch
from core_toys import net, same
from peft import IA3Config, LoraConfig, OFTConfig

from steer.training import Handle, adapted, own

CONFIGS = {
    "lora": LoraConfig(r=2, target_modules=["0", "2"]),
    "oft": OFTConfig(oft_block_size=2, r=0, target_modules=["0", "2"]),
    "ia3": IA3Config(target_modules=["0", "2"], feedforward_modules=[]),
}
POINTS = torch.linspace(-1, 1, 12).view(3, 4)


@pytest.fixture(params=["own", *CONFIGS])
def attached(request):
    """A handle, and the net's values and outputs before."""
    model = net()
    before, out = {name: value.clone() for name, value in model.state_dict().items()}, model(POINTS).detach()
    return own(model) if request.param == "own" else adapted(model, CONFIGS[request.param]), before, out


def stirred(handle: Handle) -> Handle:
    """Every trained value moved, as training would."""
    generator = torch.Generator().manual_seed(0)
    handle.load({n: w + 0.1 * torch.randn(w.shape, generator=generator) for n, w in handle.weights().items()})
    return handle


def test_at_its_start_a_parametrisation_is_the_model_itself(attached):
    handle, _, out = attached
    torch.testing.assert_close(handle.model(POINTS), out)
    assert same(handle.weights(), handle.start)


def test_only_what_is_trained_asks_for_gradients(attached):
    handle, *_ = attached
    asking = [p for p in handle.model.parameters() if p.requires_grad]
    assert {id(p) for p in asking} == {id(p) for p in handle.parameters.values()}
    assert handle.count == sum(p.numel() for p in asking)


def test_detach_leaves_the_model_as_it_was_bit_for_bit(attached):
    handle, before, out = attached
    assert not torch.allclose(stirred(handle).model(POINTS), out)
    model = handle.detach()
    assert same(dict(model.state_dict()), before)
    assert torch.equal(model(POINTS), out)
    assert not hasattr(model, "peft_config")


def test_merge_keeps_the_outputs_and_leaves_nothing_attached(attached):
    handle, before, out = attached
    tuned = stirred(handle).model(POINTS)
    model = handle.merge()
    torch.testing.assert_close(model(POINTS), tuned)
    assert not torch.allclose(tuned, out)
    assert model.state_dict().keys() == before.keys()
    assert not hasattr(model, "peft_config")


def test_a_merged_model_can_be_adapted_anew():
    model = stirred(adapted(net(), CONFIGS["lora"])).merge()
    out = model(POINTS)
    torch.testing.assert_close(adapted(model, CONFIGS["lora"]).model(POINTS), out)


def test_using_is_another_policy_and_then_the_own_one_again(attached):
    handle, _, out = attached
    tuned, learnt = stirred(handle).model(POINTS), handle.weights()
    with handle.using(handle.start):
        torch.testing.assert_close(handle.model(POINTS), out)
        with handle.using(learnt):
            assert torch.equal(handle.model(POINTS), tuned)
        torch.testing.assert_close(handle.model(POINTS), out)
    assert torch.equal(handle.model(POINTS), tuned)
    assert same(handle.weights(), learnt)


def test_using_restores_after_an_exception(attached):
    handle, *_ = attached
    learnt, start = stirred(handle).weights(), {name: value.clone() for name, value in handle.start.items()}
    with pytest.raises(RuntimeError, match="inside"), handle.using(handle.start):
        raise RuntimeError("inside")
    assert same(handle.weights(), learnt)
    assert same(handle.start, start)


def loaded(handle, weights):
    handle.load(weights)


def used(handle, weights):
    with handle.using(weights):
        pass


@pytest.mark.parametrize("enter", [loaded, used])
@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {**weights, "other": torch.zeros(1)},
        lambda weights: dict([*weights.items()][1:]),
        lambda weights: {name: value.flatten()[:1] for name, value in weights.items()},
    ],
    ids=["one more", "one less", "other shapes"],
)
def test_weights_of_other_names_or_shapes_are_refused_and_nothing_is_changed(enter, change):
    handle = own(net())
    before = handle.weights()
    with pytest.raises(ValueError, match="weights of other names or shapes than those trained here"):
        enter(handle, change(before))
    assert same(handle.weights(), before)


def test_snapshots_are_copies():
    handle = own(net())
    taken = handle.weights()
    stirred(handle)
    assert not same(handle.weights(), taken)
    assert same(handle.start, taken)


def test_a_choice_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing of this Sequential is trained"):
        own(net(), lambda name, parameter: False)
    with pytest.raises(ValueError, match="nowhere"):
        adapted(net(), LoraConfig(target_modules=["nowhere"]))


def test_a_tied_weight_counts_once():
    model = net()
    model.append(torch.nn.Linear(8, 2))
    model[3].weight = model[2].weight
    assert own(model, lambda name, parameter: name.endswith("weight")).count == 4 * 8 + 8 * 2
