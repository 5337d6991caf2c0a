"""What a tuned model is, seen from outside: its vector of activations, and the prompts it cannot learn from."""

import pytest
import tiny_models
import torch
from text_toys import generator, task

from steer.language import Add, SteeringVector, steering
from steer.training import own
from steer.training.text import delta_activations, probed, silhouette, spreads

PROBES = ("Is the cat good?", "the dog")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt"])
def test_a_probe_is_the_last_tokens_state_behind_the_last_norm(name):
    model, words = tiny_models.text_model(name), tiny_models.tokenizer()
    states = []
    for probe in PROBES:
        ids = words(probe, return_tensors="pt")["input_ids"]
        states.append(model(ids, output_hidden_states=True).hidden_states[-1][0, -1])
    torch.testing.assert_close(probed(model, words, PROBES), torch.stack(states).mean(0))
    assert not model.get_decoder()._forward_hooks


def test_what_was_not_trained_has_not_changed_and_what_was_has():
    one = task()
    handle = own(one.model, lambda name, parameter: name.endswith("down_proj.weight"))
    assert not delta_activations(handle, one.tokenizer, PROBES).any()
    base = probed(one.model, one.tokenizer, PROBES)
    handle.load({name: 1.5 * weight for name, weight in handle.weights().items()})
    found = delta_activations(handle, one.tokenizer, PROBES)
    torch.testing.assert_close(found, probed(one.model, one.tokenizer, PROBES) - base)
    assert found.norm() > 0.1


def test_a_steered_model_has_a_vector_too():
    model, words = tiny_models.text_model("llama"), tiny_models.tokenizer()
    base = probed(model, words, PROBES)
    with steering(model, SteeringVector({1: torch.ones(32)}), strength=0.5, edit=Add(relative=False)):
        pushed = probed(model, words, PROBES)
    assert (pushed - base).norm() > 0.1
    assert torch.equal(probed(model, words, PROBES), base)


def test_silhouette_by_hand():
    """Two along x, one of them tilted by 60 degrees, and one along -x: distances 0.5 within, clipped to 1 between."""
    vectors = torch.tensor([[2.0, 0.0], [1.0, 3**0.5], [-1.0, 0.0]])
    assert silhouette(vectors, ["a", "a", "b"]) == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert silhouette(vectors, ["a", "a", "b"], clip=False) == pytest.approx((0.75 + 2 / 3 + 0) / 3)
    assert silhouette(vectors[:2].repeat(2, 1), ["a", "b", "a", "b"]) == pytest.approx(1.0)
    assert silhouette(vectors[:2].repeat(2, 1), ["a", "a", "b", "b"]) < 0
    with pytest.raises(ValueError, match="expected one each, and two different ones"):
        silhouette(vectors, ["a", "a", "a"])


def test_a_prompt_whose_answers_all_earn_the_same_has_no_gradient_and_others_have():
    def known(texts, prompts):
        return torch.tensor([float("a" in text) if prompt == "I" else -1.0 for text, prompt in zip(texts, prompts)])

    one = task(reward=known, prompts=["I", "the dog"])
    handle = own(one.model)
    taught, idle = spreads(handle, one, generator(), each=20)
    assert (taught.prompt, idle.prompt) == ("I", "the dog")
    assert (idle.mean, idle.std, idle.gradient) == (-1.0, 0.0, 0.0)
    assert taught.std > 0.1
    assert taught.gradient > 0.1
    with pytest.raises(ValueError, match="no spread"):
        spreads(handle, one, generator(), each=1)


def test_the_policy_gradient_is_that_of_the_expected_reward():
    """One token is rewarded: its probability is the expected reward, and over many answers the gradients agree."""
    ids = tiny_models.tokenizer()("Is it", return_tensors="pt")["input_ids"]
    specials = len(tiny_models.SPECIAL)
    likely = specials + tiny_models.text_model("llama")(ids).logits[0, -1, specials:].argmax()
    said = tiny_models.tokenizer().decode(likely)

    def rewarded(texts, prompts):
        return torch.tensor([float(text == said) for text in texts])

    one = task(reward=rewarded, tokens=1, prompts=["Is it"])
    handle = own(one.model, lambda name, parameter: name == "model.norm.weight")
    (found,) = spreads(handle, one, generator(), each=3000)
    p = one.model(ids).logits[0, -1].softmax(-1)[likely]
    (expected,) = torch.autograd.grad(p, list(handle.parameters.values()))
    assert found.mean == pytest.approx(p.item(), abs=5 * (p * (1 - p) / 3000).sqrt().item())
    assert found.gradient == pytest.approx(expected.norm().item(), rel=0.25)
