"""The engine's own promises: what is found where, what is refused, what a gate decides, what folding costs."""

import pytest
import tiny_models
import torch
from tiny_models import text_model, tokens

from steer.language import (
    Gate,
    Positions,
    Project,
    Rotate,
    Site,
    SteeringVector,
    activations,
    folded,
    norms,
    recording,
    steering,
)
from steer.language.passes import TRACKERS
from steer.language.tower import PARTS, module_at, tower

EVERY = pytest.mark.parametrize("name", tiny_models.TEXT)


def random(*places, width=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return SteeringVector(
        {place: torch.randn(width, generator=g) for place in places}, {place: 1e3 for place in places}
    )


@EVERY
def test_parts_add_up_to_the_stream(name):
    """What attention and MLP add, each at its own site, is the difference between two blocks."""
    if name in ("gemma2", "olmo2", "bloom"):
        pytest.skip("norms stand between a part and the stream, or the part itself adds the stream")
    if name == "opt":
        with pytest.raises(ValueError, match="rows run together"), recording(text_model(name), ["1.mlp"]):
            text_model(name)(**tokens(2, 6))
        return
    model, given = text_model(name), tokens(2, 6)
    with recording(model, [0, 1, "1.attention", "1.mlp"]) as found:
        model(**given)
    before, after, attention, mlp = (states[0] for states in found.values())
    assert torch.allclose(before + attention + mlp, after, atol=1e-4)


@EVERY
def test_heads_enter_the_projection_whose_output_is_the_attention(name):
    model, given = text_model(name), tokens(1, 5)
    with recording(model, [0, "1.heads", "1.attention"]) as found:
        model(**given)
    stream, heads, attention = (states[0] for states in found.values())
    projection = module_at(model, "1.heads")
    behind = projection(heads) + (stream if name == "bloom" else 0)
    assert torch.allclose(behind, attention, atol=1e-5)


def test_what_is_recorded_sees_the_edits_opened_before_it():
    model, given, vector = text_model("llama"), tokens(1, 5), random(1)
    with recording(model, [1]) as plain:
        model(**given)
    with steering(model, vector, 2.0, relative=False, keep_norm=False), recording(model, [1]) as found:
        model(**given)
    assert torch.allclose(found[Site(1)][0] - plain[Site(1)][0], 2 * vector.directions[Site(1)], atol=1e-5)


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("edit", ["add", "ablate", "clamp", "rotate"])
def test_an_edit_does_what_its_formula_says(edit, keep_norm):
    model, given, vector = text_model("llama"), tokens(2, 6), random(1, seed=3)
    v = vector.directions[Site(1)]
    u = v / v.norm()
    with recording(model, [1]) as plain:
        model(**given)
    with steering(model, vector, 0.5, edit=edit, keep_norm=keep_norm), recording(model, [1]) as found:
        model(**given)
    h, changed = plain[Site(1)][0], found[Site(1)][0]
    size, c = h.norm(dim=-1, keepdim=True), (h @ u)[..., None]
    angle = torch.arccos((c / size).clamp(-1, 1))
    turned = (angle - 0.5).clamp_min(0)
    w = (h - c * u) / (h - c * u).norm(dim=-1, keepdim=True)
    wanted = {
        "add": h + 0.5 * size * u,
        "ablate": h - 0.5 * c * u,
        "clamp": h - 0.5 * c.clamp_max(0) * u,
        "rotate": size * (turned.cos() * u + turned.sin() * w),
    }[edit]
    wanted = wanted / wanted.norm(dim=-1, keepdim=True) * size if keep_norm else wanted
    assert torch.allclose(changed, wanted, atol=1e-4)


def test_full_strength_reaches_the_target_and_rotation_never_passes_it():
    model, given, vector = text_model("llama"), tokens(1, 6), random(1)
    u = vector.directions[Site(1)] / vector.directions[Site(1)].norm()
    with steering(model, vector, 1.0, edit=Project(at=2.5), keep_norm=False), recording(model, [1]) as found:
        model(**given)
    assert torch.allclose(found[Site(1)][0] @ u, torch.tensor(2.5), atol=1e-4)
    with steering(model, vector, 3.0, edit=Rotate()), recording(model, [1]) as found:
        model(**given)
    assert torch.allclose(torch.cosine_similarity(found[Site(1)][0], u, dim=-1), torch.ones(()), atol=1e-5)


def test_an_attention_sink_is_left_alone():
    """The state whose norm is above ten times the vector's median is not moved by a relative push."""
    model, given = text_model("llama"), tokens(1, 6)
    with recording(model, [1]) as plain:
        model(**given)
    sizes = plain[Site(1)][0].norm(dim=-1)[0]
    limit = float(sizes.sort().values[3:5].mean())  # between the fourth and fifth of six
    vector = SteeringVector({1: torch.ones(32)}, {1: limit / 10})
    with steering(model, vector, 0.5), recording(model, [1]) as found:
        model(**given)
    moved = (found[Site(1)][0] != plain[Site(1)][0]).any(-1)[0]
    assert torch.equal(moved, sizes <= limit)


def test_rows_have_their_own_vectors_and_strengths_also_under_beams():
    model, given = text_model("llama"), tokens(2, 6, padded=2)
    a, b = random(1, seed=1), random(1, seed=2)
    ask = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2}
    with steering(model, [a, b], [0.4, -0.8]):
        both = model.generate(**given, **ask)
    for k, (vector, strength) in enumerate(((a, 0.4), (b, -0.8))):
        with steering(model, vector, strength):
            alone = model.generate(**{name: value[k : k + 1] for name, value in given.items()}, **ask)
        assert torch.equal(both[k], alone[0])


def test_a_direction_of_zeros_leads_nowhere():
    model, given = text_model("llama"), tokens(1, 5)
    plain = model(**given).logits
    for edit in ("add", "ablate", "clamp", "rotate"):
        with steering(model, 0 * random(1), 0.5, edit=edit, keep_norm=False):
            assert torch.allclose(model(**given).logits, plain, atol=1e-5), edit


def test_a_gate_opens_for_the_rows_that_show_the_condition():
    model, given, push = text_model("llama"), tokens(3, 7, padded=2), random(2)
    means = activations(model, given, [1], at="mean")[Site(1)]
    condition = SteeringVector({1: means[1]})
    similar = Gate(condition, 0.0).similarity(means)
    threshold = float(similar.sort().values[1:].mean())  # one of three passes: the row the condition was read from
    assert int(similar.argmax()) == 1
    ask = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**given, **ask)
    for cache in (True, False):
        with steering(model, push, 0.5, gate=Gate(condition, threshold)):
            gated = model.generate(**given, **ask, use_cache=cache)
        changed = (gated.logits[0] - plain.logits[0]).abs().amax(1) > 1e-4
        assert changed.tolist() == [False, True, False]
        assert torch.equal(gated.sequences[[0, 2]], plain.sequences[[0, 2]])
    with steering(model, push, 0.5, gate=Gate(condition, threshold, above=False)):
        turned = model(**given).logits
    assert ((turned - model(**given).logits).abs().amax((1, 2)) > 1e-4).tolist() == [True, False, True]


@EVERY
def test_folding_is_adding_or_is_refused(name):
    model, given, vector = text_model(name), tokens(2, 6), random(0, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if name in ("gemma2", "olmo2"):  # a norm stands behind the MLP
        with pytest.raises(ValueError, match="folded is not the same as added"), folded(model, vector, 0.5):
            pass
    else:
        with steering(model, vector, 0.5, relative=False, keep_norm=False):
            added = model(**given).logits
        with folded(model, vector, 0.5):
            assert torch.allclose(model(**given).logits, added, atol=1e-4)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_what_goes_wrong_while_opening_leaves_nothing_behind():
    model = text_model("llama")
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    for bad in (
        lambda: steering(model, random(1), gate=Gate(random(2), 0.0)),
        lambda: steering(model, random(1), where="everywhere"),
        lambda: recording(model, [0, 7]),
    ):
        with pytest.raises(ValueError, match=r"before it|everywhere|layer 7"), bad():
            pass
    with pytest.raises(RuntimeError, match="inside"), steering(model, random(1)):
        raise RuntimeError("inside")
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert "generate" not in model.__dict__
    assert model not in TRACKERS


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda m: steering(m, random(1, width=48)), "of width 48.*width 32"),
        (lambda m: steering(m, random("1.heads", width=48)), "of width 48.*width 32"),
        (lambda m: steering(m, random(9)), "layer 9: expected -3 to 2"),
        (lambda m: steering(m, SteeringVector({1: torch.ones(32)}, {1: 1.0}, {"blocks": "30"})), "30 layers"),
        (lambda m: steering(m, SteeringVector({1: torch.ones(32)})), "no norms"),
        (lambda m: steering(m, random(1), float("nan")), "finite"),
        (lambda m: steering(m, random(1), [[0.1]]), "one for each row"),
        (lambda m: steering(m, random(1), edit="subtract"), "edit"),
        (lambda m: steering(m, random(1), where="image"), "no image tokens"),
        (lambda m: steering(m, random(1), where=torch.ones(2, 3)), "expected bool"),
        (lambda m: steering(m, []), "no steering vectors"),
        (lambda m: steering(m, [random(1), random(2)]), "expected the same"),
        (lambda m: steering(m, random(1), gate=Gate(random(0, 1), 0.0)), "one site"),
        (lambda m: folded(m, random("1.mlp"), 1.0), "blocks alone"),
    ],
)
def test_bad_input_is_told_what_was_expected(how, message):
    with pytest.raises(ValueError, match=message), how(text_model("llama")):
        pass


def test_a_batch_of_other_rows_is_refused_when_it_runs():
    model = text_model("llama")
    with steering(model, random(1), [0.1, 0.2]), pytest.raises(ValueError, match="a batch of 3 runs"):
        model(**tokens(3, 4))


def test_vectors_are_data():
    a, b = random(0, 1, seed=1), random(1, 2, seed=2)
    both = a + 2 * b
    assert both.sites == (Site(0), Site(1), Site(2))
    assert torch.equal(both.directions[Site(1)], a.directions[Site(1)] + 2 * b.directions[Site(1)])
    assert torch.equal((a - a).directions[Site(0)], torch.zeros(32))
    assert a["1"].sites == a[[Site(1)]].sites == (Site(1),)
    assert abs(a.cosine(-a)[Site(0)] + 1) < 1e-6
    for make, message in (
        (lambda: SteeringVector({}), "at least one site"),
        (lambda: SteeringVector({1: torch.tensor([0.0, torch.nan])}), "finite"),
        (lambda: SteeringVector({"x": torch.ones(2)}), "expected a layer"),
        (lambda: SteeringVector({"1.head": torch.ones(2)}), "expected one of"),
        (lambda: a[5], "this vector has"),
        (lambda: a + random(1, width=8), "cannot be added"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_states_are_those_of_each_row_alone():
    model, given = text_model("gpt2"), tokens(3, 8, padded=2)
    for at in ("last", "mean"):
        together = activations(model, given, [1, "2.heads"], at=at, rows=2)
        for k in range(3):
            real = given["attention_mask"][k].bool()
            alone = {name: value[k : k + 1][:, real] for name, value in given.items()}
            for place, states in activations(model, alone, together, at=at).items():
                assert torch.allclose(states[0], together[place][k], atol=1e-5)
    with pytest.raises(ValueError, match="padding on the left"):
        activations(model, {name: value.flip(1) for name, value in given.items()}, [1])
    with pytest.raises(ValueError, match="at='first'"):
        activations(model, given, [1], at="first")
    assert set(norms(model, given, [0, 1])) == {Site(0), Site(1)}


def test_the_tower_is_found_or_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16))
    with pytest.raises(ValueError, match="encoder-decoder"):
        tower(model)
    assert all(module_at(text_model(name), Site(-1, part)) for name in tiny_models.TEXT for part in PARTS)
    assert Positions((0,)).numbers == (0,)
