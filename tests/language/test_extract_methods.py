"""Methods with a search of their own: ActAdd, ITI, the refusal direction, MELBO."""

import copy
import sys
from contextlib import ExitStack

import pytest
import tiny_models
import torch
from torch.nn import functional as F

from steer.language import Positions, Site, SteeringVector, recording, steering
from steer.language.data import Pair, whole
from steer.language.extract import act_add, everywhere, iti, melbo, refusal
from steer.language.extract.fitting import States
from steer.language.extract.refusal import choose, refusal_score
from steer.language.hooks import hooked
from steer.language.record import run

TOKENIZER = tiny_models.tokenizer()
RAW = {"relative": False, "keep_norm": False}


def ids(text):
    return torch.tensor([TOKENIZER(text)["input_ids"]])


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ActAdd


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("negative", ["the cat is sad", "the cat is happy and you"])
def test_act_add_turns_the_negative_prompt_into_the_positive(family, negative):
    """With coefficient 1 the states behind the layer are those of the positive prompt, and so is all that follows."""
    model, positive = tiny_models.text_model(family), "the cat is not a dog"
    vectors = act_add(model, TOKENIZER, positive, negative, layer=1)
    rows = [TOKENIZER(text)["input_ids"] for text in (positive, negative)]
    space = TOKENIZER(" ")["input_ids"][-1]
    padded = torch.tensor([row + [space] * (max(map(len, rows)) - len(row)) for row in rows])
    same = [bool((v.directions[Site(1)] == 0).all()) for v in vectors]
    assert same == [bool((padded[0, : t + 1] == padded[1, : t + 1]).all()) for t in range(padded.shape[1])]
    plain = model(padded[:1]).logits
    assert not torch.allclose(model(padded[1:]).logits, plain, atol=0.1)
    with ExitStack() as stack:
        for t, v in enumerate(vectors):
            stack.enter_context(steering(model, v, 1.0, where=Positions((t,)), **RAW))
        torch.testing.assert_close(model(padded[1:]).logits, plain, atol=1e-4, rtol=1e-4)


def test_act_add_needs_two_prompts():
    with pytest.raises(ValueError, match="same tokens"):
        act_add(tiny_models.text_model("llama"), TOKENIZER, "a cat", "a cat", layer=0)
    with pytest.raises(ValueError, match="layer 6"):
        act_add(tiny_models.text_model("llama"), TOKENIZER, "a cat", "a dog")


# ITI


def heads_that_know(monkeypatch, n=40):
    """States in which head 2 of layer 1 and head 0 of layer 2 tell the sides apart, the first by more; else noise."""
    sides = {layer: (random(n, 32, seed=layer), random(n, 32, seed=9 + layer)) for layer in range(3)}
    sides[1][0][:, 16:24] += 5
    sides[2][0][:, :8] += 1.5
    states = {Site(layer, "heads"): States(*both, 1.5) for layer, both in sides.items()}
    monkeypatch.setattr(sys.modules["steer.language.extract.iti"], "recorded", lambda *args: states)
    return states


@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(1)])
def test_iti_finds_the_heads_that_know(monkeypatch, generator):
    states = heads_that_know(monkeypatch)
    vector = iti(tiny_models.text_model("llama"), TOKENIZER, [Pair("I", "a", "b")] * 40, heads=2, generator=generator)
    names = [head.partition(":")[0] for head in vector.provenance["heads"].split()]
    assert names == ["1.2", "2.0"]
    assert dict(vector.norms) == {Site(1, "heads"): 1.5, Site(2, "heads"): 1.5}
    assert set(vector.sites) == set(vector.norms)
    for place, span in ((Site(1, "heads"), slice(16, 24)), (Site(2, "heads"), slice(0, 8))):
        positive, negative = (side[:, span] for side in states[place][:2])
        theta = F.normalize(positive.mean(0) - negative.mean(0), dim=0)
        wanted = torch.zeros(32)
        wanted[span] = theta * (torch.cat([positive, negative]) @ theta).std(correction=0)
        torch.testing.assert_close(vector.directions[place], wanted)


def test_iti_passes_over_a_head_that_is_dead(monkeypatch):
    """Its states are all the same, so no probe tells them apart."""
    for states in heads_that_know(monkeypatch).values():
        for side in states[:2]:
            side[:, :8] = 0.0
    vector = iti(tiny_models.text_model("llama"), TOKENIZER, [Pair("I", "a", "b")] * 40, heads=12)
    accuracies = dict(head.split(":") for head in vector.provenance["heads"].split())
    assert accuracies["0.0"] == accuracies["2.0"] == "0.500"
    assert accuracies["1.2"] == "1.000"


def test_iti_reads_what_enters_the_output_projection():
    """End to end: K heads of the model, in units of their spread, and a model that they steer."""
    model = tiny_models.text_model("qwen3")
    pairs = [Pair(prompt, " Yes", " No") for prompt in ("the cat is", "Is it red? ", "I", "you and I", "not a dog")]
    vector = iti(model, TOKENIZER, pairs, heads=3, rows=4)
    moved = sum(int((v.view(4, 8).norm(dim=1) > 0).sum()) for v in vector.directions.values())
    assert (moved, len(vector.provenance["heads"].split())) == (3, 3)
    assert set(vector.norms) == set(vector.sites)
    plain = model(ids("the cat is")).logits
    with steering(model, vector, 15.0, where="generated", **RAW):
        assert not torch.allclose(model(ids("the cat is")).logits, plain, atol=0.1)


@pytest.mark.parametrize(("count", "heads", "says"), [(10, 13, "13 heads of 12"), (10, 0, "0 heads"), (1, 1, "1 of 1")])
def test_iti_says_what_it_lacks(count, heads, says):
    with pytest.raises(ValueError, match=says):
        iti(tiny_models.text_model("llama"), TOKENIZER, [Pair("I", "a", "b")] * count, heads)


# Refusal


@pytest.fixture(scope="module")
def refusing():
    """A model that says No where the stream has u, which the word "bad" writes into it; (model, u, No)."""
    model = copy.deepcopy(tiny_models.text_model("llama"))
    u = F.normalize(random(32, seed=3), dim=0)
    bad, good, no = (TOKENIZER(text)["input_ids"][-1] for text in (" bad", " good", " No"))
    weight = model.get_input_embeddings().weight.data
    weight[bad] = weight[good] + 40 * u
    model.lm_head.weight.data *= 0.05
    model.lm_head.weight.data[no] = 2 * u / model.model.norm.weight.data
    return model, u, no


PROMPTS = [f"{who} is {what}" for who in ("it", "the cat", "a dog", "you") for what in ("", "not", "red", "a", "blue")]
HARMFUL, HARMLESS = [f"{text} bad" for text in PROMPTS], [f"{text} good" for text in PROMPTS]


def test_the_refusal_direction_is_found(refusing):
    model, u, no = refusing
    vector = refusal(model, TOKENIZER, HARMFUL, HARMLESS, [no], divergence=1.0, induced=-torch.inf, tail=0.0, rows=7)
    (r,) = vector.directions.values()
    assert F.cosine_similarity(r, u, dim=0) > 0.5
    assert vector.provenance["position"] == "-1"

    def score(text, *how, **options):
        with steering(model, *how, **options):
            return float(refusal_score(model(ids(text)).logits[:, -1].double().log_softmax(-1), [no]))

    plain = [score(text, vector, 0.0) for text in ("I bad", "I good")]
    assert plain[0] > plain[1]
    assert score("I bad", everywhere(vector, model), 1.0, edit="ablate", keep_norm=False) < plain[0] - 0.3
    assert score("I good", vector, 1.0, **RAW) > plain[1] + 0.3


def test_nothing_is_left_of_what_is_removed_everywhere():
    model = tiny_models.text_model("llama")
    r = F.normalize(random(32), dim=0)
    vector = everywhere(SteeringVector({1: r}), model)
    with steering(model, vector, 1.0, edit="ablate", keep_norm=False), recording(model, vector.sites) as found:
        model(ids("the cat is not a dog"))
    assert len(vector.sites) == 9
    assert max(float((states[0] @ r).abs().max()) for states in found.values()) < 1e-5
    with recording(model, vector.sites) as plain:
        model(ids("the cat is not a dog"))
    assert min(float((states[0] @ r).abs().max()) for states in plain.values()) > 1e-2


def test_the_least_refusal_among_those_that_pass_is_chosen():
    nan = torch.nan
    rows = [[-9, 1, 0.2], [-8, -1, 0.0], [nan, 1, 0.0], [-7, 1, nan], [-2, 1, 0.05], [-3, 0, 0.1]]
    scores = torch.tensor(rows, dtype=torch.float64)
    assert choose(scores) == 5
    assert choose(scores, divergence=0.3) == 0
    assert choose(scores, induced=-2) == 1
    with pytest.raises(ValueError, match="none of 6 candidates"):
        choose(scores, divergence=-1.0)


def test_a_refusal_score_is_the_log_odds_of_its_words():
    p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    assert float(refusal_score(p.log(), [0, 1])) == pytest.approx(torch.log(torch.tensor(3.0)).item(), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"held_out": 0.0}, "at least one"),
        ({"positions": 9}, "positions=9: expected 1 to 5"),
        ({"tail": 0.5}, "tail=0.5 of 3 blocks"),
    ],
)
def test_refusal_says_what_it_lacks(options, says):
    with pytest.raises(ValueError, match=says):
        refusal(tiny_models.text_model("llama"), TOKENIZER, HARMFUL, HARMLESS, [1], **options)
    with pytest.raises(ValueError, match="2 sites"):
        everywhere(SteeringVector({0: torch.ones(32), 1: torch.ones(32)}), tiny_models.text_model("llama"))


# MELBO


def moved(model, tokens, theta, source=0, target=2):
    """States behind the target with theta behind the source."""
    with hooked(model, [(Site(source), lambda hidden: hidden + theta)]), recording(model, [target], True) as found:
        run(model, tokens)
    return found[Site(target)][-1]


def test_melbo_of_small_radius_is_the_first_singular_vector():
    """Oracle: with p = 2, one prompt and a small push, |h(theta) - h(0)| = |J theta|, the Jacobian by autograd."""
    model = tiny_models.text_model("llama", torch.float64)
    tokens = whole(TOKENIZER, ["the cat is not"]).inputs()
    jacobian = torch.autograd.functional.jacobian(
        lambda theta: moved(model, tokens, theta).flatten(), torch.zeros(32, dtype=torch.float64)
    )
    _, s, axes = torch.linalg.svd(jacobian, full_matrices=False)
    assert s[0] > 1.05 * s[1]
    generator = torch.Generator().manual_seed(0)
    vector = melbo(
        model, TOKENIZER, ["the cat is not"], 0.01, source=0, target=2, steps=90, lr=1e-4, generator=generator
    )
    (theta,) = vector.directions.values()
    assert float(theta.norm()) == pytest.approx(0.01, rel=1e-5)
    assert abs(float(F.normalize(theta.double(), dim=0) @ axes[0])) > 0.99


def test_melbo_moves_more_than_chance_and_apart_from_what_was_found():
    model, prompts = tiny_models.text_model("llama"), ["the cat is not", "I", "it is a red dog and you"]
    tokens = whole(TOKENIZER, prompts).inputs()
    plain = moved(model, tokens, torch.zeros(32))
    real = tokens["attention_mask"].bool()

    def gain(theta):
        apart = (moved(model, tokens, theta) - plain).norm(dim=-1) * real
        return float(apart.square().sum(1).sqrt().sum())

    options = {"source": 0, "target": 2, "steps": 25, "lr": 0.15, "generator": torch.Generator().manual_seed(0)}
    first = melbo(model, TOKENIZER, prompts, 3.0, **options)
    second = melbo(model, TOKENIZER, prompts, 3.0, apart_from=[first], **options)
    found = [v.directions[Site(0)] for v in (first, second)]
    chance = max(gain(3 * F.normalize(random(32, seed=k), dim=0)) for k in range(20))
    assert gain(found[0]) > 1.05 * chance
    assert gain(found[1]) > chance
    assert abs(float(F.cosine_similarity(*found, dim=0))) < 1e-5
    assert (second.provenance["radius"], second.provenance["target"], second.provenance["method"]) == (
        "3",
        "2",
        "melbo",
    )


@pytest.mark.parametrize(
    ("radius", "options", "says"),
    [
        (0.0, {}, "radius 0"),
        (1.0, {"source": 2, "target": 0}, "behind the source"),
        (
            1.0,
            {"source": 0, "target": 2, "apart_from": [SteeringVector({0: torch.eye(32)[k]}) for k in range(32)]},
            "32",
        ),
    ],
)
def test_melbo_says_what_it_lacks(radius, options, says):
    with pytest.raises(ValueError, match=says):
        melbo(tiny_models.text_model("llama"), TOKENIZER, ["the cat"], radius, **{"source": 0, "target": 2, **options})
