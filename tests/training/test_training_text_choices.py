"""Right and wrong answers for T-Few: its losses against the model run answer by answer, and what they teach."""

from copy import deepcopy

import pytest
import tiny_models
import torch
from text_toys import generator, task

from steer.language.data import Choices, Pair
from steer.training import Run, tune
from steer.training.text import Example, TextTask
from steer.training.weights.losses import choice_losses
from steer.training.weights.methods import METHODS

QUESTIONS = [
    Choices("Is the cat good?", (" Yes", " No no", " not red and not blue")),
    Pair("the dog", " is happy", " is sad"),
    Example("I", " and you"),
    Choices("Is it red?", (" No it is blue", " Yes")),
]


def alone(model, prompt: str, answer: str) -> torch.Tensor:
    """log p of the tokens of an answer and of its end, without padding."""
    words = tiny_models.tokenizer()
    ids = words(prompt + answer + "</s>", return_tensors="pt")["input_ids"]
    start = len(words(prompt)["input_ids"])
    logp = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return logp[start - 1 :]


def test_the_losses_are_the_formulas_over_answers_run_one_by_one():
    """In float64, on four questions with three, two, one and two answers."""
    model = deepcopy(tiny_models.text_model("llama", torch.float64))
    one = TextTask(model, tiny_models.tokenizer(), QUESTIONS)
    batch = one.batch(generator(), 4)
    asked = [QUESTIONS[k] for k in batch.index.tolist()]
    assert asked != QUESTIONS
    with torch.no_grad():
        logp = [[alone(model, question.prompt, answer) for answer in question.options] for question in asked]
        found = choice_losses(*one.choices(model, batch))
    right = torch.cat([answers[0] for answers in logp])
    wrong = torch.cat([answer for answers in logp for answer in answers[1:]])
    means = [torch.stack([answer.mean() for answer in answers]) for answers in logp]
    torch.testing.assert_close(found[0], -right.mean())
    torch.testing.assert_close(found[1], -(1 - wrong.exp() + 0.01).log().mean())
    torch.testing.assert_close(found[2], torch.stack([mean.logsumexp(0) - mean[0] for mean in means]).mean())


def test_every_answer_counts_its_own_tokens_and_the_first_is_right():
    one = task(examples=QUESTIONS)
    logp, counts, right = one.choices(one.model, one.batch(generator(), 9, torch.tensor([0, 2])))
    assert sorted(counts.sum(-1).tolist()) == [[2, 3, 6], [3, 0, 0]]  # of the words and the end
    assert (counts.long().diff(dim=-1) <= 0).all()
    assert right.tolist() == [0, 0]
    assert (logp[~counts] == 0).all()
    assert tiny_models.tokenizer().decode(one.rows.take(torch.tensor([0])).input_ids[0]) == "Is the cat good? Yes</s>"


def after(**dials) -> tuple[torch.Tensor, torch.Tensor]:
    """p of the right and of the wrong answers of two questions, of one token each; trained where dials are given."""
    liked = [Choices("Is the dog blue?", (" no", " Is", "B")), Pair("I", " and", "h")]  # p = 0.18, 0.22 and 0.15
    one = task(examples=liked, end=False)
    if dials:
        tune(one, METHODS["t_few"](lr=0.03, **dials), Run(steps=25, seed=1))
    with torch.no_grad():
        logp, counts, _ = one.choices(one.model, one.batch(generator(), 2))
    assert counts.shape[-1] == 1
    return logp[:, 0].exp(), logp[:, 1:][counts[:, 1:]].exp()


def test_t_few_makes_right_answers_likelier_and_wrong_ones_less_likely():
    (right, wrong), (taught, others) = after(), after(unlikelihood=1.0, ranking=1.0)
    assert (taught > 10 * right).all()
    assert (others < wrong / 10).all()
    _, untold = after(unlikelihood=0.0, ranking=0.0)
    for dials in ({"unlikelihood": 1.0, "ranking": 0.0}, {"unlikelihood": 0.0, "ranking": 1.0}):
        assert (after(**dials)[1] < untold).all()


def test_all_answers_are_counted():
    one = task(examples=QUESTIONS)
    batch = one.batch(generator(), 4)
    with torch.no_grad():
        one.choices(one.model, batch)
    assert one.ledger.tokens == one.options[0].input_ids.numel()


def test_a_task_without_wrong_answers_is_refused():
    one = task(examples=[Example("I", " and you")])
    with pytest.raises(ValueError, match="wrong answers too; give examples as Pair or Choices"):
        tune(one, METHODS["t_few"](), Run(steps=1))
    with pytest.raises(ValueError, match="the context of LlamaForCausalLM is 512"):
        task(examples=[Pair("I", " a", "I" * 600)]).options
