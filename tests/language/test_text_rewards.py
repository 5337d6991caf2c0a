"""Rewards on texts: values by hand, the algebra shared with rewards on pictures, and what is refused."""

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec

import pytest
import tiny_models
import torch

from steer.rewards import Classifier, Colour, Length, Regex, Scaled, TextReward, Vader, ValidJSON, text

TEXTS, PROMPTS = ["I am happy", "a sad, sad day", "42"], ["How?", "How?", "Which?"]


@dataclass(frozen=True)
class Letters(TextReward):
    """Letters of text and prompt; remembers what it was asked."""

    batch: int | None = None
    asked: list = field(default_factory=list, repr=False, compare=False)

    def score(self, texts, prompts):
        self.asked.append(len(texts))
        return torch.tensor([len(a) + 100 * len(b) for a, b in zip(texts, prompts)])


def test_the_algebra_is_arithmetic():
    combined = 0.5 * Letters() + Length(3) * 2 - Regex("sad")
    assert combined(TEXTS, PROMPTS).tolist() == [205 - 0 - 0, 207 - 2 - 1, 301 - 4 - 0]
    assert combined(TEXTS, PROMPTS).dtype == torch.float32
    assert combined.medium == "texts"
    assert (-Regex("sad"))(TEXTS, PROMPTS).tolist() == [0, -1, 0]
    assert 0.5 * Length(3) == Scaled(0.5, Length(3))
    assert hash(0.5 * Length(3)) == hash(Scaled(0.5, Length(3)))


def test_scores_are_standardised_among_texts_of_one_prompt():
    assert Letters().zscored()(TEXTS, PROMPTS).tolist() == pytest.approx([-1, 1, 0])


def test_a_text_is_scored_once_for_each_prompt():
    inner = Letters()
    reward = inner.cached()
    expected = Letters()(["a", "b", "a", "a"], ["p", "p", "p", "qq"])
    assert torch.equal(reward(["a", "b", "a", "a"], ["p", "p", "p", "qq"]), expected)
    assert torch.equal(reward(["a", "a"], ["qq", "p"]), expected[[3, 0]])
    assert inner.asked == [3]


def test_chunks_cover_the_call():
    reward = Letters(batch=2)
    assert reward(TEXTS, PROMPTS).tolist() == [410, 414, 602]
    assert reward.asked == [2, 1]
    assert reward([], []).shape == (0,)


def test_texts_and_pictures_do_not_add():
    with pytest.raises(ValueError, match="all on pictures or all on latents or all on texts"):
        Letters() + Colour("red")


@pytest.mark.parametrize(
    ("texts", "prompts", "message"),
    [
        ("a", ["b"], "texts are 'a'; expected a list"),
        (["a"], "b", "bare string 'b'|prompts are 'b'"),
        (["a"], ["b", "c"], "1 texts came with 2 prompts"),
        ([1], ["b"], r"texts are \[1\]; expected a list of strings"),
        (torch.rand(1, 3, 4, 4), ["b"], "texts are tensor"),
    ],
)
def test_bad_calls_are_refused(texts, prompts, message):
    with pytest.raises(ValueError, match=message):
        (2 * Letters())(texts, prompts)


def test_a_score_of_the_wrong_shape_is_named():
    @dataclass(frozen=True)
    class One(TextReward):
        def score(self, texts, prompts):
            return torch.tensor(1.0)

    with pytest.raises(ValueError, match=r"returned shape \(\); expected one score a text: \(3,\)"):
        One()(TEXTS, PROMPTS)


def test_patterns():
    assert Regex(r"\bsad\b")(TEXTS, PROMPTS).tolist() == [0, 1, 0]
    assert Regex(r"\d+", whole=True)([*TEXTS, "42 or so"], [*PROMPTS, ""]).tolist() == [0, 0, 1, 0]
    assert Regex(r"\d+")(["42 or so"], [""]).tolist() == [1]
    with pytest.raises(ValueError, match=r"pattern '\(' cannot be compiled"):
        Regex("(")


def test_valid_json():
    texts = ['{"a": [1, 2]}', " [true]\n", "42", '{"a": 1', "{'a': 1}", "NaN", "[Infinity]", "", "[1] and", "[" * 10**5]
    assert ValidJSON()(texts, [""] * len(texts)).tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_lengths():
    assert Length(3)(TEXTS, PROMPTS).tolist() == [0, -1, -2]
    assert Length(10, "characters")(TEXTS, PROMPTS).tolist() == [0, -4, -8]
    with pytest.raises(ValueError, match=r"unknown unit 'word'.*Did you mean 'words'"):
        Length(3, "word")
    with pytest.raises(ValueError, match="target -1"):
        Length(-1)


@pytest.mark.skipif(find_spec("vaderSentiment") is None, reason="needs vaderSentiment: pip install 'steer[language]'")
def test_sentiment_by_the_published_example():
    """The first example of the authors' README."""
    found = Vader()(["VADER is smart, handsome, and funny.", "Today sux", "It is a table."], [""] * 3)
    assert found.tolist() == pytest.approx([0.8316, -0.3612, 0.0], abs=1e-6)


def test_without_vader_the_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    text._vader.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'steer\[language\]'"):
        Vader()(["a"], ["b"])


def pipeline(task="text-classification"):
    import transformers as hf

    labels = {k: name for k, name in enumerate(("good", "bad", "dull"))}
    torch.manual_seed(0)
    config = hf.LlamaConfig(**tiny_models.LLAMA, id2label=labels, label2id={v: k for k, v in labels.items()})
    model = hf.LlamaForSequenceClassification(config).eval()
    return hf.pipeline(task, model=model, tokenizer=tiny_models.tokenizer())


def test_a_classifier_gives_the_log_probability_of_its_label():
    pipe = pipeline()
    found = torch.stack([Classifier(pipe, label)(TEXTS, PROMPTS) for label in ("good", "bad", "dull")])
    ids = [tiny_models.tokenizer()(one, return_tensors="pt")["input_ids"] for one in TEXTS]
    expected = torch.cat([pipe.model(one).logits for one in ids]).log_softmax(-1).T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    together = Classifier(pipe, "bad", prompts=True)(TEXTS, PROMPTS)
    torch.testing.assert_close(together, Classifier(pipe, "bad")([a + b for a, b in zip(PROMPTS, TEXTS)], PROMPTS))
    assert repr(2 * Classifier(pipe, "bad")).startswith(
        "Scaled(weight=2.0, reward=Classifier(label='bad', prompts=False"
    )
    with pytest.raises(ValueError, match=r"unknown label 'god'.*Did you mean 'good'"):
        Classifier(pipe, "god")
    pipe.task = "translation"
    with pytest.raises(ValueError, match="unknown pipeline task for a text reward 'translation'"):
        Classifier(pipe, "good")
