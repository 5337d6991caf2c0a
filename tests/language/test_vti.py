"""VTI: its directions are what its formula says, and pushes of the vision tower keep norms and leave nothing behind."""

import pytest
import torch
from equivalence import answered, forward, heard, inputs, model
from tiny_models import tokens
from tiny_vlms import PICTURES, VISION, pictures

from steer.language import Site, activations, steering
from steer.language.edits import norm
from steer.language.hooks import hooked
from steer.language.vti import eyes, seeing, textual, visual


def generator():
    return torch.Generator().manual_seed(0)


def views(name, rows=3):
    return pictures(name, torch.rand(rows, 3, 8, 8, generator=generator()) * 2 - 1)


def captions(name):
    """The same two pictures and questions, with other captions behind them."""
    return [answered(name, inputs(name), tokens(2, 4, seed=seed)["input_ids"]) for seed in (1, 2)]


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3"])
def test_textual_is_mean_and_first_axis(name):
    """Two differences a and b: their mean is (a + b) / 2, their centred axis (a - b) / |a - b| up to its sign."""
    faithful, invented = captions(name)
    vector = textual(model(name), faithful, invented)
    assert vector.sites == tuple(Site(layer, "mlp") for layer in range(3))
    states = [activations(model(name), side, range(3)) for side in (faithful, invented)]
    a, b = torch.cat([states[0][Site(k)] - states[1][Site(k)] for k in range(3)], 1)
    found = torch.cat([vector.directions[place] for place in vector.sites]) - (a + b) / 2
    assert abs(found @ (a - b)) == pytest.approx((a - b).norm().item(), rel=1e-4)
    assert found.norm() == pytest.approx(1, rel=1e-4)
    flipped = textual(model(name), invented, faithful)
    for place in vector.sites:
        torch.testing.assert_close(flipped.directions[place], -vector.directions[place], atol=1e-5, rtol=1e-4)
    plain = forward(name, inputs(name))
    with steering(model(name), vector, 0.09):
        heard(forward(name, inputs(name)), plain)


@pytest.mark.parametrize("name", VISION)
def test_visual_is_of_every_patch(name):
    directions = visual(model(name), views(name), generator(), copies=2, ratio=0.5)
    assert [*directions] == [*range({"llava": 5, "qwen3_vl": 4}.get(name, 2))]
    assert all(v.shape == directions[0].shape and v.isfinite().all() and v.any() for v in directions.values())
    again = visual(model(name), views(name), generator(), copies=2, ratio=0.5)
    assert all(torch.equal(again[layer], v) for layer, v in directions.items())


@pytest.mark.parametrize("name", VISION)
def test_seeing_keeps_norms_and_leaves_nothing(name):
    network, plain = model(name), forward(name, inputs(name))
    directions = visual(network, views(name), generator(), copies=2, ratio=0.5)
    last = max(directions) - (name == "llava")  # which reads the layer before its last
    only, seen = {last: directions[last]}, {key: inputs(name)[key] for key in PICTURES if key in inputs(name)}
    states: list[torch.Tensor] = []
    note = (Site(last, "mlp"), lambda hidden: states.append(hidden.reshape(-1, *only[last].shape).clone()))
    with hooked(eyes(network), [note], flat=True):
        network.get_image_features(**seen)
    with seeing(network, only, 0.3), hooked(eyes(network), [note], flat=True):
        network.get_image_features(**seen)
        heard(forward(name, inputs(name)), plain, by=1e-3)
    was, now = states[:2]
    torch.testing.assert_close(norm(now), norm(was), rtol=1e-5, atol=1e-6)
    turned, before = (torch.cosine_similarity(each, only[last].expand_as(each), dim=-1) for each in (now, was))
    assert (turned > before).all()
    with seeing(network, directions, 0.0):
        assert torch.equal(forward(name, inputs(name)), plain)
    assert torch.equal(forward(name, inputs(name)), plain)
    assert not any(m._forward_hooks for m in tower_mlps(network))


def tower_mlps(network):
    return [m for name, m in eyes(network).named_modules() if name.endswith("mlp")]


def test_refusals():
    with pytest.raises(ValueError, match="LlamaForCausalLM has no vision tower"):
        eyes(model("llama"))
    with pytest.raises(ValueError, match=r"ratio 1.5"):
        visual(model("llava"), views("llava"), generator(), ratio=1.5)
    with pytest.raises(ValueError, match="at least 2"):
        visual(model("llava"), views("llava", rows=1), generator(), copies=1)
    with seeing(model("llava"), {0: torch.ones(7, 16)}, 0.1), pytest.raises(ValueError, match=r"directions \(7, 16\)"):
        forward("llava", inputs("llava"))
