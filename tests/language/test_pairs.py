"""Pairs, their tokens in padded rows, published files, and splits."""

import json
from pathlib import Path

import pytest
import tiny_models
import torch

from steer.language.data import Choices, Pair, chat, encoded, whole
from steer.language.readers import personas, split, truthful_qa, truthful_qa_choices

PROMPTS, RESPONSES = [" the cat is", "Is it a red dog and not a cat"], [" happy and I", " Yes"]


def texts(rows, which):
    tokenizer = tiny_models.tokenizer()
    return [tokenizer.decode(ids[chosen]) for ids, chosen in zip(rows.input_ids, which)]


def test_rows_are_prompt_and_response_padded_at_the_left():
    rows = encoded(tiny_models.tokenizer(), PROMPTS, RESPONSES)
    real = rows.attention_mask.bool()
    assert texts(rows, real & ~rows.answer) == PROMPTS
    assert texts(rows, rows.answer) == RESPONSES
    assert rows.answer.sum(1).tolist() == [3, 1]
    assert (rows.input_ids[~real] == tiny_models.PAD).all()
    assert bool(real[:, -1].all())
    assert rows.lengths.tolist() == [6, 11]
    assert rows.positions.tolist() == [[0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5], list(range(11))]


def test_taken_rows_lose_the_columns_that_pad_them_all():
    rows = encoded(tiny_models.tokenizer(), [PROMPTS[k] for k in (0, 1, 0)], [RESPONSES[k] for k in (0, 1, 1)])
    part = rows.take(torch.tensor([2, 0]))
    assert part.input_ids.shape == (2, 6)
    assert texts(part, part.answer) == [" Yes", " happy and I"]


def test_a_prompt_has_the_same_tokens_whatever_follows():
    """Where the tokenizer would merge across the seam ("a " and "cat"), the response keeps its own tokens."""
    tokenizer = tiny_models.tokenizer()
    assert len(tokenizer("a cat")["input_ids"]) < len(tokenizer("a ")["input_ids"] + tokenizer("cat")["input_ids"])
    rows = encoded(tokenizer, ["a ", "a "], ["cat is", "!"])
    assert texts(rows, rows.attention_mask.bool() & ~rows.answer) == ["a ", "a "]
    assert texts(rows, rows.answer) == ["cat is", "!"]


def with_bos():
    """The same words, with a BOS before every text, as Llama's tokenizer puts it."""
    import copy

    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_models.tokenizer())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tiny_models.BOS)]
    )
    return tokenizer


def test_one_bos_is_enough():
    tokenizer = with_bos()
    plain, written = encoded(tokenizer, ["a cat"], [" is"]), encoded(tokenizer, ["<s>a cat"], [" is"])
    assert plain.input_ids[0, 0] == tiny_models.BOS
    assert (plain.input_ids == tiny_models.BOS).sum() == (written.input_ids == tiny_models.BOS).sum() == 1
    assert texts(plain, plain.answer) == texts(written, written.answer) == [" is"]
    assert (whole(tokenizer, ["<s>a cat"]).input_ids == tiny_models.BOS).sum() == 1


def test_whole_texts_answer_with_all_but_their_first_token():
    rows = whole(tiny_models.tokenizer(), [" the cat is happy", " a dog"])
    assert texts(rows, rows.answer) == [" cat is happy", " dog"]
    assert rows.lengths.tolist() == [4, 2]


def test_a_chat_ends_where_the_answer_begins():
    tokenizer = tiny_models.tokenizer()
    assert chat(tokenizer, "a cat") == "<user>a cat</s><assistant>"
    assert chat(tokenizer, "a cat", system="no") == "<system>no</s><user>a cat</s><assistant>"


class Processor:
    """A processor of pictures for the tiny tokenizer: one picture becomes `size` image tokens."""

    size = 4
    tokenizer = tiny_models.tokenizer()

    def __call__(self, text, images, return_tensors):
        ids = self.tokenizer(text[0].replace("<image>", "<image>" * self.size), return_tensors="pt")["input_ids"]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": (ids == tiny_models.IMAGE).long(),
            "pixel_values": torch.full((1, 3, 8, 8), float(images[0])),
        }


class PaliGemmaProcessor(Processor):
    pass


@pytest.mark.parametrize(("processor", "kind"), [(Processor(), 0), (PaliGemmaProcessor(), 1)])
def test_rows_with_images_carry_what_the_processor_says(processor, kind):
    rows = encoded(processor, ["<image> the cat", "<image> a"], [" is", " dog"], images=[0.25, 0.5])
    assert rows.lengths.tolist() == [7, 6]
    assert rows.types["token_type_ids"].tolist() == [[1, 1, 1, 1, 0, 0, kind], [0, 1, 1, 1, 1, 0, kind]]
    inputs = rows.take(torch.tensor([1])).inputs()
    assert inputs.keys() == {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}
    assert inputs["pixel_values"].unique().tolist() == [0.5]
    assert inputs["token_type_ids"].shape == inputs["input_ids"].shape == (1, 6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t: Pair("a", " b", None), "negative is None; expected a text"),
        (lambda t: Pair("a", "", " b"), "positive is ''"),
        (lambda t: Pair("  ", " a", " b"), "prompt is '  '"),
        (lambda t: Pair("a", " b", " b"), "both responses are the same"),
        (lambda t: Choices("a", (" b",)), "expected at least two, all different"),
        (lambda t: Choices("a", (" b", " b")), "expected at least two, all different"),
        (lambda t: encoded(t, [""], [" a"]), "empty prompt"),
        (lambda t: encoded(t, ["a"], [""]), "empty response"),
        (lambda t: encoded(t, ["a"], [" b", " c"]), "1 prompts, 2 responses and 1 images"),
        (lambda t: encoded(t, "ab", [" b", " c"]), "expected lists"),
        (lambda t: encoded(t, [], []), "no prompts"),
        (lambda t: whole(t, [""]), "none empty"),
        (lambda t: whole(t, []), "at least one text"),
        (lambda t: whole(t, "abc"), "expected a list"),
        (lambda t: split([Pair("a", " b", " c")] * 9, (2,)), "need 2 pairs, and there are 1 with different prompts"),
    ],
)
def test_what_cannot_be_used_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(tiny_models.tokenizer())


def test_a_tokenizer_without_a_template_cannot_chat():
    import copy

    tokenizer = copy.deepcopy(tiny_models.tokenizer())
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        chat(tokenizer, "a")


def yes_and_no(n):
    return [Pair(f"question {k}", *((" Yes", " No") if k % 4 else (" No", " Yes"))) for k in range(n)]


def test_parts_are_disjoint_and_the_same_in_any_order():
    pairs = yes_and_no(60)
    parts = split(pairs, (10, 20, 30))
    assert [len(part) for part in parts] == [10, 20, 30]
    assert len({pair.prompt for part in parts for pair in part}) == 60
    assert split(pairs[::-1] + pairs[:7], (10, 20, 30)) == parts, "order and repetition do not matter"
    assert split(pairs, (10, 20, 30), seed=1) != parts
    assert parts[0][0].prompt == "question 30", "a part must not change from one release, or machine, to the next"


def test_balanced_parts_have_as_many_of_each_answer():
    pairs = yes_and_no(60)  # 15 " No", 45 " Yes"
    for part in split(pairs, (6, 24), balanced=True):
        assert 2 * sum(pair.positive == " Yes" for pair in part) == len(part)
    with pytest.raises(ValueError, match="there are 30 with different prompts and balanced responses"):
        split(pairs, (32,), balanced=True)


def test_the_same_question_about_other_pictures_is_another_pair():
    pairs = [Pair("is it?", " Yes", " No", image) for image in (torch.zeros(3, 2, 2), torch.ones(3, 2, 2), "a.png")]
    assert len(split(pairs, (3,))[0]) == 3


def test_persona_files(tmp_path):
    row = {"question": "Would you?", "answer_matching_behavior": " No", "answer_not_matching_behavior": " Yes"}
    row["statement"] = "I {would}"
    (tmp_path / "some.jsonl").write_text(json.dumps(row) + "\n\n")
    assert personas(tmp_path / "some.jsonl") == [Pair("Would you?\nAnswer:", " No", " Yes")]
    assert personas(tmp_path / "some.jsonl", "{question}")[0].prompt == "Would you?"
    assert personas(tmp_path / "some.jsonl", "It says: {statement}")[0].prompt == "It says: I {would}"
    with pytest.raises(ValueError, match="without 'statements'"):
        personas(tmp_path / "some.jsonl", "{statements}")
    (tmp_path / "other.jsonl").write_text('{"question": "Would you?"}')
    with pytest.raises(ValueError, match="without 'answer_matching_behavior'"):
        personas(tmp_path / "other.jsonl")
    with pytest.raises(FileNotFoundError, match="anthropics/evals"):
        personas(tmp_path / "missing.jsonl")


TRUTHFUL = """Type,Question,Best Answer,Best Incorrect Answer,Incorrect Answers
Adversarial,"Why, then?",Because,No reason,"No reason; By chance;Because"
"""


def test_truthful_qa_files(tmp_path):
    (tmp_path / "t.csv").write_text(TRUTHFUL)
    assert truthful_qa(tmp_path / "t.csv") == [Pair("Q: Why, then?\nA:", " Because", " No reason")]
    expected = Choices("Q: Why, then?\nA:", (" Because", " No reason", " By chance"))
    assert truthful_qa_choices(tmp_path / "t.csv") == [expected]
    (tmp_path / "u.csv").write_text("Question\nWhy?\n")
    with pytest.raises(ValueError, match=r"columns \['Question'\]; expected"):
        truthful_qa(tmp_path / "u.csv")
    with pytest.raises(FileNotFoundError, match="sylinrl/TruthfulQA"):
        truthful_qa(tmp_path / "missing.csv")


DATA = Path(__file__).parents[3] / "shared" / "data"


def published(name, source):
    return pytest.mark.skipif(not (DATA / name).is_file(), reason=f"no {DATA / name}: a file of {source} on GitHub")


@pytest.mark.shared_data
@published("persona/extraversion.jsonl", "anthropics/evals, persona/extraversion.jsonl")
def test_the_published_personas():
    pairs = personas(DATA / "persona" / "extraversion.jsonl")
    assert {(pair.positive, pair.negative) for pair in pairs} == {(" Yes", " No"), (" No", " Yes")}
    steering, validation, held_out = split(pairs, (64, 100, 200), balanced=True)
    assert [sum(pair.positive == " Yes" for pair in part) for part in (steering, validation, held_out)] == [32, 50, 100]


@pytest.mark.shared_data
@published("truthfulqa.csv", "sylinrl/TruthfulQA, TruthfulQA.csv")
def test_the_published_truthful_qa():
    pairs, choices = truthful_qa(DATA / "truthfulqa.csv"), truthful_qa_choices(DATA / "truthfulqa.csv")
    assert len(pairs) == len(choices) == 790
    assert pairs[0].positive == choices[0].options[0]
    assert pairs[0].positive == " The watermelon seeds pass through your digestive system"
    assert pairs[0].negative == choices[0].options[1] == " You grow watermelons in your stomach"
    assert len(choices[0].options) == 8
