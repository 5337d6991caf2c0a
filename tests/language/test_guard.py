"""Detectors, the order of the stages and what they log, and the four rates, on answers that are known."""

from importlib import import_module
from pathlib import Path

import pytest
import tiny_models
import torch

from steer.language.data import Pair
from steer.language.detect import Keywords, Probe, YesNo, pooled, threshold_at
from steer.language.guard import (
    REFUSAL,
    Answer,
    Fact,
    Filter,
    Fired,
    Guard,
    PromptGuard,
    answering,
    known,
    misspelt,
    report,
)
from steer.language.scoring import margins
from steer.language.tower import Site

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo"}
ANIMALS = {"dog": "barks", "cat": "meows", "cow": "moos", "sheep": "bleats"}
FORGET = [Fact(f"What is the capital of {land}?", city) for land, city in CAPITALS.items()]
RETAIN = [Fact(f"What does a {animal} do?", noise) for animal, noise in ANIMALS.items()]


class Oracle:
    """Knows all facts by the last word of a question, however its letters are; remembers what it was asked."""

    def __init__(self):
        self.asked, self.calls = [], 0

    def __call__(self, prompts):
        self.calls += 1
        self.asked += prompts
        names = {misspelt(name): said for name, said in CAPITALS.items()} | CAPITALS | ANIMALS
        return [next((f"It is {said}." for name, said in names.items() if name in p), "What?") for p in prompts]


def test_keywords_are_whole_words_in_any_case():
    texts = ["ART, then", "a party", "the art-house", "Über art"]
    assert Keywords(("art",))(texts).tolist() == [1, 0, 1, 1]
    assert Keywords(("art",), whole=False)(texts).tolist() == [1, 1, 1, 1]
    assert Keywords(("art", "über")).found("Über art") == ("art", "über")
    assert Keywords(("c++",)).found("In C++, of course") == ("c++",)
    for wrong in ("art", (), ("",)):
        with pytest.raises(ValueError, match="expected a tuple of at least one word"):
            Keywords(wrong)


def test_nothing_fires_without_a_stage():
    oracle = Oracle()
    answers = Guard(oracle)([fact.question for fact in FORGET])
    assert answers == [Answer(f"It is {fact.answer}.") for fact in FORGET]
    assert oracle.asked == [fact.question for fact in FORGET]
    assert Guard(oracle)([]) == []
    with pytest.raises(ValueError, match="bare string 'Why'"):
        Guard(oracle)("Why")


def test_the_stages_act_in_order_and_say_why():
    oracle = Oracle()
    guard = Guard(
        oracle,
        inputs=Filter(Keywords(("France",)), refusal="No."),
        prompt=PromptGuard("capitals", "Forget {subject}."),
        outputs=Filter(Keywords(("rome", "it")), threshold=1.0),
    )
    answers = guard(["What is the capital of France?", "What is the capital of Italy?", "Where?"])
    assert answers[0] == Answer("No.", (Fired("input filter", 1.0, 0.5, ("France",)),))
    assert answers[1].text == REFUSAL
    assert answers[1].log == (Fired("prompt guard"), Fired("output filter", 1.0, 1.0, ("rome", "it")))
    assert answers[2] == Answer("What?", (Fired("prompt guard"),))
    assert [answer.blocked for answer in answers] == [True, True, False]
    assert oracle.asked == ["Forget capitals.\n\nWhat is the capital of Italy?", "Forget capitals.\n\nWhere?"]


def test_a_model_that_is_never_reached_is_not_run():
    oracle = Oracle()
    assert all(answer.blocked for answer in Guard(oracle, Filter(Keywords(("what",))))(["What?", "So what"]))
    assert oracle.calls == 0


def test_an_empty_answer_is_passed_on():
    assert Guard(lambda prompts: [""] * len(prompts), outputs=Filter(Keywords(("a",))))(["b"]) == [Answer("")]


def test_the_four_rates():
    plain = report(Guard(Oracle()), FORGET, RETAIN)
    assert (plain.forget_rate, plain.retain_score) == (1, 1)
    assert (plain.false_block_rate, plain.leak_under_paraphrase) == (0, 1)
    lands = report(Guard(Oracle(), Filter(Keywords(("France", "Italy", "Spain", "Japan", "cat")))), FORGET, RETAIN)
    assert (lands.forget_rate, lands.retain_score) == (1 / 5, 3 / 4)
    assert lands.false_block_rate == 1 / 4
    assert lands.leak_under_paraphrase == 1, "a misspelt name passes a filter of names"
    cities = report(Guard(Oracle(), outputs=Filter(Keywords(tuple(CAPITALS.values())))), FORGET, RETAIN)
    assert (cities.forget_rate, cities.leak_under_paraphrase) == (0, 0), "a misspelt question does not hide its answer"
    told = report(Guard(Oracle(), prompt=PromptGuard("capitals")), FORGET, RETAIN)
    assert (told.forget_rate, told.false_block_rate) == (1, 0), "an instruction blocks nothing"
    other = report(Guard(Oracle()), FORGET, RETAIN, paraphrased=[Fact("Seat of government?", "Paris")])
    assert other.leak_under_paraphrase == 0


def test_an_answer_is_known_by_its_whole_word():
    assert known([Answer("PARIS!"), Answer("Parisian")], [FORGET[0]] * 2) == 0.5
    with pytest.raises(ValueError, match="1 answers to 2 facts"):
        known([Answer("a")], FORGET[:2])


def test_misspelling_changes_every_long_word():
    assert misspelt("What does the watermelon do with butter?") == "What does the waermelon do with buter?"


@pytest.mark.parametrize(("rate", "blocked"), [(0.05, 1), (0.04, 0), (0.0, 0), (0.5, 10), (0.99, 19)])
def test_a_threshold_blocks_no_more_than_its_rate(rate, blocked):
    scores = torch.rand(20, generator=torch.Generator().manual_seed(0))
    tau = threshold_at(lambda texts: scores, ["a"] * 20, rate)
    assert int((scores >= tau).sum()) == blocked
    tied = threshold_at(lambda texts: torch.ones(20), ["a"] * 20, rate)
    assert tied > 1, "where all are alike none may be blocked"
    for wrong in ({"rate": 1.0}, {"rate": -0.1}, {"harmless": []}):
        with pytest.raises(ValueError, match="expected 0 <= rate < 1, and some texts"):
            threshold_at(lambda texts: scores, **{"harmless": ["a"], **wrong})


def about(word, n, seed):
    """Texts of other words, with one word of their subject in each."""
    generator = torch.Generator().manual_seed(seed)
    others = ("the", "is", "not", "and", "you", "it", "good", "bad", "red", "blue")
    texts = []
    for _ in range(n):
        words = [others[k] for k in torch.randint(len(others), (3,), generator=generator)]
        words.insert(int(torch.randint(4, (), generator=generator)), word)
        texts.append(" " + " ".join(words))
    return texts


def test_a_probe_finds_its_subject_in_texts_it_has_not_seen():
    model, tokenizer = tiny_models.text_model("llama"), tiny_models.tokenizer()
    probe = Probe.fit(model, tokenizer, about("cat", 60, 0), about("dog", 60, 1), layer=0)
    cats, dogs = about("cat", 20, 2), about("dog", 20, 3)
    found = probe(cats), probe(dogs)
    assert probe.site == Site(0)
    assert all(((scores > 0) & (scores < 1)).all() for scores in found)
    tau = threshold_at(probe, about("dog", 40, 4))
    assert (found[0] >= tau).float().mean() >= 0.9
    assert (found[1] >= tau).float().mean() <= 0.1
    nothing = Probe.fit(model, tokenizer, about("cat", 24, 0), about("cat", 24, 1), layer=0)(cats)
    assert (nothing >= threshold_at(lambda texts: nothing, cats)).float().mean() <= 0.05


def test_states_are_pooled_over_tokens_and_not_over_padding():
    model, tokenizer = tiny_models.text_model("llama"), tiny_models.tokenizer()
    texts = [" a cat", " the dog is not good and sad"]
    both = pooled(model, tokenizer, texts, Site(2))
    alone = torch.cat([pooled(model, tokenizer, [text], Site(2)) for text in texts])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)


def test_a_judge_says_how_likely_yes_is():
    model, tokenizer = tiny_models.text_model("llama"), tiny_models.tokenizer()
    judge = YesNo(model, tokenizer, "cats", "Is {{text}} it {subject}?")
    asked = "Is {a cat} it cats?"
    assert len(tokenizer(" yes")["input_ids"]) == len(tokenizer(" no")["input_ids"]) == 1
    chances = model(tokenizer(asked, return_tensors="pt")["input_ids"]).logits[0, -1].softmax(-1)
    yes, no = (chances[tokenizer(word)["input_ids"][0]] for word in (" yes", " no"))
    assert float(judge(["a cat"])) == pytest.approx(float(yes / (yes + no)), abs=1e-5)
    torch.testing.assert_close(
        judge(["a", "b"]),
        torch.cat([margins(model, tokenizer, [Pair(f"Is {{{x}}} it cats?", " yes", " no")]) for x in "ab"]).sigmoid(),
    )

    turned = YesNo(model, tokenizer, "cats", "Is {{text}} it {subject}?", (" no", " yes"))
    assert float(turned(["a cat"])) == pytest.approx(1 - float(judge(["a cat"])), abs=1e-5)


def test_answers_are_those_of_single_prompts():
    model, tokenizer = tiny_models.text_model("llama"), tiny_models.tokenizer()
    prompts = [" a cat", " the dog is not good and sad", " I", " you"]
    together = answering(model, tokenizer, tokens=6, rows=3)(prompts)
    assert together == [answering(model, tokenizer, tokens=6)([prompt])[0] for prompt in prompts]
    assert len(set(together)) > 1
    asked = tokenizer("<user> a cat</s><assistant>", return_tensors="pt")
    made = model.generate(**asked, max_new_tokens=6, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert together[0] == tokenizer.decode(made, skip_special_tokens=True)


def test_the_benchmark_asks_nothing_that_a_filter_was_fitted_on(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    listed = import_module("benchmarks.guardrail_facts")
    parts = [{fact.question for fact in listed.others(*part)} for part in ((0, 4), (2, 4), (1, 2))]
    assert [len(part) for part in parts] == [40, 40, 80]
    assert len(set().union(*parts)) == 160
    capitals = listed.facts("{}?", listed.CAPITALS)
    assert len({fact.question for fact in capitals}) == len(capitals) >= 60
    assert listed.others(0, 1)[0] == Fact("Which language is spoken in France?", "French")
