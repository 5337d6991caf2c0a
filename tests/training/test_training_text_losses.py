"""Losses of texts, against the model run row by row and against their formulas."""

import warnings

import pytest
import tiny_models
import torch
from text_toys import EXAMPLES, PROMPTS, generator, logp_of, task

from steer.training import own
from steer.training.text import Example, TextTask
from steer.training.text.grpo import GRPO, _rows
from steer.training.text.likelihood import Likelihood, rectified


def gradient(loss, handle):
    found = torch.autograd.grad(loss, list(handle.parameters.values()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def test_the_loss_is_the_mean_over_the_tokens_of_answers_and_their_ends():
    one = task()
    rows = one.rows
    logp = torch.cat(logp_of(one.model, rows))
    torch.testing.assert_close(one.loss(one.model, rows), -logp.mean())
    assert one.logits(one.model, rows).shape == (len(logp), tiny_models.VOCABULARY)
    ends = rows.input_ids[:, -1]
    assert (ends == tiny_models.EOS).all()
    assert (task(end=False).rows.input_ids[:, -1] != tiny_models.EOS).all()


def test_of_a_pair_the_positive_answer_is_learnt():
    said = task().rows.take(torch.tensor([2]))
    assert tiny_models.tokenizer().decode(said.input_ids[0]) == "the dog is sad</s>"


def test_a_batch_holds_different_examples_and_no_more_than_there_are():
    one = task()
    assert len(one.batch(generator(), 4).input_ids.unique(dim=0)) == 4
    assert len(one.batch(generator(), 99)) == len(EXAMPLES)
    among = torch.tensor([1, 5])
    small, wanted = one.batch(generator(), 9, among), one.rows.take(among)
    assert {tuple(row) for row in small.input_ids.tolist()} == {tuple(row) for row in wanted.input_ids.tolist()}


def test_what_is_asked_of_the_model_is_counted():
    one = task()
    batch = one.batch(generator(), 3)
    with torch.no_grad():
        one.loss(one.model, batch)
    assert (one.ledger.tokens, one.ledger.backward_tokens) == (batch.input_ids.numel(), 0)
    own(one.model)
    one.loss(one.model, batch)
    assert (one.ledger.tokens, one.ledger.backward_tokens) == (2 * batch.input_ids.numel(), batch.input_ids.numel())
    one.score(["a", "b"], ["x", "y"])
    assert one.ledger.reward_calls == 2


def test_another_model_may_run_in_the_tasks_place():
    one, other = task(), task("qwen2")
    batch = one.batch(generator(), 3)
    torch.testing.assert_close(one.loss(other.model, batch), -torch.cat(logp_of(other.model, batch)).mean())


def test_the_gradient_of_dft_is_that_of_minus_p():
    """And its value is not: the weight is a constant."""
    one = task()
    handle = own(one.model)
    value, noted = Likelihood(handle, one, batch=99, weight=rectified).loss(generator())
    logp = torch.cat(logp_of(one.model, one.rows))
    torch.testing.assert_close(gradient(value, handle), gradient(-logp.exp().mean(), handle))
    torch.testing.assert_close(value, -(logp.exp() * logp).mean())
    assert noted["nll"] == pytest.approx(-logp.mean().item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_answers_are_drawn_from_the_whole_distribution_at_the_temperature(temperature):
    """First tokens of 4000 answers, each frequency within 5 deviations of its probability."""
    one = task(tokens=1)
    rows, _ = one.sample(["Is it"] * 4000, generator(), temperature)
    drawn = rows.input_ids[:, -1].bincount(minlength=tiny_models.VOCABULARY) / 4000
    ids = tiny_models.tokenizer()("Is it", return_tensors="pt")["input_ids"]
    p = (one.model(ids).logits[0, -1] / temperature).softmax(-1)
    assert ((drawn - p).abs() <= 5 * (p * (1 - p) / 4000).sqrt() + 1e-3).all()
    assert (drawn > 0).sum() > 50 if temperature == 1.0 else True


def test_sampled_rows_are_the_prompts_with_what_was_said():
    one = task(tokens=5)
    rows, texts = one.sample(PROMPTS, generator())
    words = tiny_models.tokenizer()
    for ids, mask, answer, prompt, text in zip(rows.input_ids, rows.attention_mask, rows.answer, PROMPTS, texts):
        assert words.decode(ids[mask.bool() & ~answer]) == prompt
        assert words.decode(ids[answer], skip_special_tokens=True) == text
        assert 1 <= answer.sum() <= 5


def grpo(one: TextTask, **dials) -> GRPO:
    return GRPO(own(one.model), one, prompts=3, each=4, **dials)


def test_the_first_loss_on_answers_has_the_policy_gradient():
    one = task()
    objective = grpo(one)
    value, noted = objective.loss(generator())
    samples = objective.samples
    logp = logp_of(one.model, _rows(samples))
    parts = [-advantage * row for advantage, row in zip(samples["advantages"], logp)]
    torch.testing.assert_close(gradient(value, objective.handle), gradient(torch.cat(parts).mean(), objective.handle))
    advantages = samples["rewards"].view(3, 4) - samples["rewards"].view(3, 4).mean(1, keepdim=True)
    spread = samples["rewards"].view(3, 4).std(1, keepdim=True, correction=0) + 1e-6
    torch.testing.assert_close(samples["advantages"].view(3, 4), advantages / spread)
    assert noted["reward"] == pytest.approx(samples["rewards"].mean().item())
    assert noted["clipped"] == 0


def test_a_second_loss_on_the_same_answers_takes_the_ratio_to_who_drew_them():
    one = task()
    objective, g = grpo(one, updates=2, clip=0.1), generator()
    objective.loss(g)
    before = logp_of(one.model, _rows(objective.samples))
    with torch.no_grad():
        for parameter in objective.handle.parameters.values():
            parameter.mul_(1.01)
    value, noted = objective.loss(g)
    ratio = [(new - old).exp() for new, old in zip(logp_of(one.model, _rows(objective.samples)), before)]
    a = objective.samples["advantages"]
    parts = [torch.minimum(A * r, A * r.clamp(0.9, 1.1)) for A, r in zip(a, ratio)]
    torch.testing.assert_close(value, -torch.cat(parts).mean(), rtol=1e-4, atol=1e-6)
    assert noted["clipped"] > 0
    drawn = objective.samples["ids"]
    objective.loss(g)
    assert objective.samples["ids"] is not drawn


def test_the_divergence_from_the_reference_is_0_at_first_and_then_positive():
    one = task(reward=lambda texts, prompts: torch.ones(len(texts)))
    objective = grpo(one, beta=1.0)
    assert objective.loss(generator())[0].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        one.model.lm_head.weight.mul_(1.3)
    value, _ = objective.loss(generator())
    new = torch.cat(logp_of(one.model, _rows(objective.samples)))
    with objective.handle.using(objective.handle.start):
        d = torch.cat(logp_of(one.model, _rows(objective.samples))) - new
    torch.testing.assert_close(value, (d.exp() - d - 1).mean(), rtol=1e-4, atol=1e-6)
    assert value > 0.001


def test_groups_that_teach_nothing_are_told_of():
    def half(texts, prompts):
        return torch.tensor([float(k % 2) if prompt == "I" else 1.0 for k, prompt in enumerate(prompts)])

    one = task(reward=half)
    objective = grpo(one)
    g = generator()
    for _ in range(6):
        objective.loss(g)
    with pytest.warns(UserWarning, match=r"of 21 groups all answers earned the same reward.*sft_grpo"):
        objective.loss(g)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):  # of the next groups it is too early to tell
            objective.loss(g)


def test_what_cannot_be_learnt_from_is_refused():
    words, model = tiny_models.tokenizer(), tiny_models.text_model("llama")
    with pytest.raises(ValueError, match="without examples and prompts"):
        TextTask(model, words)
    with pytest.raises(ValueError, match="learns from answers"):
        TextTask(model, words, prompts=["I"]).batch(generator(), 1)
    with pytest.raises(ValueError, match="needs a reward"):
        TextTask(model, words, prompts=["I"]).score(["a"], ["I"])
    with pytest.raises(ValueError, match="expected 1 finite scores"):
        TextTask(model, words, prompts=["I"], reward=lambda texts, prompts: [float("nan")]).score(["a"], ["I"])
    with pytest.raises(ValueError, match="context of LlamaForCausalLM is 512"):
        TextTask(model, words, [Example("I" * 600, " a")])
    with pytest.raises(ValueError, match="3 prompts of 1, 4 answers"):
        grpo(task(examples=(), prompts=["I"]))
