"""Log-probabilities against the model's full logits, taken one row and one token at a time."""

import copy
import math

import pytest
import tiny_models
import tiny_vlms
import torch

from steer.language import scoring
from steer.language.data import Choices, Encoded, Pair, encoded, whole
from steer.language.scoring import LogProb, choice_accuracy, chosen, log_probs, margins, matched, perplexity

PROMPTS = ["the cat is", "Is it a red dog and not a cat? ", "I"]
RESPONSES = [" happy and I", "Yes", " not sad, and you"]
FAMILIES = ("llama", "gpt2", "gemma2", "opt", "bloom", "cohere", "granite", "mistral")


def by_hand(model, prompt, response):
    """log p of each response token from the logits of one unpadded row: the row before a token scores it."""
    tokenizer = tiny_models.tokenizer()
    before, after = (tokenizer(text)["input_ids"] for text in (prompt, response))
    logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    return [float(logits[len(before) - 1 + k, token]) for k, token in enumerate(after)]


def rows():
    return encoded(tiny_models.tokenizer(), PROMPTS, RESPONSES)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_what_the_full_logits_say(family):
    """In float64, so that padding, positions, caps, scales and the shift by one leave no room for a tolerance.

    Eager attention casts its mask to float32 for the softmax, where the least float64 is -inf and padding NaN.
    """
    eager = tiny_models.text_model(family).config._attn_implementation == "eager"
    model = tiny_models.text_model(family, torch.float32 if eager else torch.float64)
    close = {"atol": 3e-5 if eager else 1e-9, "rtol": 0}
    tokens = [by_hand(model, *row) for row in zip(PROMPTS, RESPONSES)]
    sums, means = ([f(row) for row in tokens] for f in (sum, lambda row: sum(row) / len(row)))
    assert len({round(x, 3) for x in sums}) == 3
    torch.testing.assert_close(log_probs(model, rows(), "sum").tolist(), sums, **close)
    torch.testing.assert_close(log_probs(model, rows()).tolist(), means, **close)


def test_chunks_change_nothing(monkeypatch):
    model, seen = tiny_models.text_model("gpt2", torch.float64), []
    expected = log_probs(model, rows())
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        monkeypatch.setattr(scoring, "TOKENS", 24)
        chunked = log_probs(model, rows())
        monkeypatch.setattr(scoring, "LOGITS", 1)
        single = log_probs(model, rows())
    finally:
        hook.remove()
    torch.testing.assert_close(chunked, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(single, expected, atol=1e-12, rtol=0)
    lengths = sorted(rows().lengths.tolist(), reverse=True)
    assert seen == [(1, lengths[0]), (2, lengths[1]), *((1, length) for length in lengths)]


def test_the_head_runs_on_the_columns_of_responses_only():
    model, seen = tiny_models.text_model("llama"), []
    hook = model.get_output_embeddings().register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    try:
        log_probs(model, rows())
    finally:
        hook.remove()
    longest = int(rows().answer.sum(1).max())
    assert seen == [longest + 1]
    assert longest + 1 < rows().input_ids.shape[1]


def test_half_precision_is_summed_in_float32():
    model = copy.deepcopy(tiny_models.text_model("llama")).bfloat16()
    found = log_probs(model, rows())
    assert found.dtype == torch.float32
    exact = log_probs(tiny_models.text_model("llama"), rows())
    assert (found - exact).abs().max() < 0.1


class OnePicture:
    """A processor for the tiny LLaVA: a picture is 4 tokens, and its pixels are given as they are."""

    tokenizer = tiny_models.tokenizer()

    def __call__(self, text, images, return_tensors):
        batch = self.tokenizer(text[0].replace("<image>", "<image>" * 4), return_tensors="pt")
        return {"input_ids": batch["input_ids"], "pixel_values": images[0][None]}


def test_a_vision_language_model_sees_its_image():
    model, processor = tiny_vlms.vision_model("llava", torch.float64), OnePicture()
    images = list(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    pairs = [
        Pair("<image>Is it a cat?", " Yes", " No", images[0]),
        Pair("<image>the dog and the cat is", " red", " blue and sad", images[1]),
    ]

    def alone(pair, response):
        given = processor([pair.prompt], [pair.image], "pt")
        after = torch.tensor([processor.tokenizer(response)["input_ids"]])
        ids = torch.cat([given["input_ids"], after], 1)
        logits = model(input_ids=ids, pixel_values=given["pixel_values"]).logits[0].log_softmax(-1)
        return logits[-after.shape[1] - 1 : -1].gather(1, after.T).mean()

    expected = torch.stack([alone(pair, pair.positive) - alone(pair, pair.negative) for pair in pairs])
    # its positions count padding, and rotary angles are float32 whatever the model is
    torch.testing.assert_close(margins(model, processor, pairs), expected, atol=1e-6, rtol=0)
    swapped = [Pair(a.prompt, a.positive, a.negative, b.image) for a, b in zip(pairs, pairs[::-1])]
    assert (margins(model, processor, swapped) - expected).abs().min() > 1e-3
    with pytest.raises(ValueError, match="some of the questions have an image and some have none"):
        margins(model, processor, [pairs[0], Pair("a", " Yes", " No")])


def test_margins_are_differences_and_choices_their_signs():
    model, tokenizer = tiny_models.text_model("llama"), tiny_models.tokenizer()
    pairs = [Pair(prompt, " Yes", " not good, and sad") for prompt in PROMPTS]
    positive, negative = (
        log_probs(model, encoded(tokenizer, PROMPTS, [getattr(pair, name) for pair in pairs]))
        for name in ("positive", "negative")
    )
    found = margins(model, tokenizer, pairs)
    torch.testing.assert_close(found, positive - negative)
    swapped = [Pair(pair.prompt, pair.negative, pair.positive) for pair in pairs]
    torch.testing.assert_close(margins(model, tokenizer, swapped), -found)
    assert choice_accuracy(model, tokenizer, pairs) == pytest.approx((found > 0).double().mean().item())
    assert choice_accuracy(model, tokenizer, pairs + swapped) == 0.5


def test_choices_are_compared_by_the_mean_over_their_tokens():
    model, tokenizer = tiny_models.text_model("llama", torch.float64), tiny_models.tokenizer()
    options = (" Yes", " I I I", " red")
    scores = [by_hand(model, PROMPTS[0], option) for option in options]
    assert max(range(3), key=lambda k: sum(scores[k]) / len(scores[k])) == 1
    assert max(range(3), key=lambda k: sum(scores[k])) == 0, "a sum would favour the short one"
    asked = [Choices(PROMPTS[0], options), Choices(PROMPTS[0], (options[1], options[0]))]
    assert chosen(model, tokenizer, asked).tolist() == [1, 0]
    assert choice_accuracy(model, tokenizer, asked) == 0.5


def test_perplexity_is_that_of_all_tokens_together():
    model, tokenizer = tiny_models.text_model("gpt2", torch.float64), tiny_models.tokenizer()
    texts = ["the cat is happy and sad", "I not you"]
    first = [tokenizer(text)["input_ids"][:1] for text in texts]
    heads = [tokenizer.decode(ids) for ids in first]
    tokens = [x for head, text in zip(heads, texts) for x in by_hand(model, head, text[len(head) :])]
    assert perplexity(model, tokenizer, texts) == pytest.approx(math.exp(-sum(tokens) / len(tokens)), rel=1e-9)


def test_log_prob_is_a_reward_on_texts():
    model, tokenizer = tiny_models.text_model("llama"), tiny_models.tokenizer()
    found = LogProb(model, tokenizer)([*RESPONSES, ""], [*PROMPTS, "a"])
    torch.testing.assert_close(found[:3], log_probs(model, rows()))
    assert found[3].isnan()
    total = (2 * LogProb(model, tokenizer, "sum"))(RESPONSES, PROMPTS)
    torch.testing.assert_close(total, 2 * log_probs(model, rows(), "sum"))
    assert repr(LogProb(model, tokenizer)) == "LogProb(reduction='mean', name='LlamaForCausalLM')"


def grown():
    tokenizer = copy.deepcopy(tiny_models.tokenizer())
    tokenizer.add_tokens(["strange"])
    return tokenizer


def no_response():
    given = rows()
    return Encoded(given.input_ids, given.attention_mask, torch.zeros_like(given.answer))


def nothing_before():
    given = whole(tiny_models.tokenizer(), ["a cat"])
    return Encoded(given.input_ids, given.attention_mask, torch.ones_like(given.answer))


WRONG = {
    "reduction": (lambda m, t: log_probs(m, rows(), "max"), "unknown reduction 'max'"),
    "context": (lambda m, t: log_probs(m, encoded(t, ["a", " cat" * 600], [" b", " c"])), r"row 1 has \d+ tokens.*512"),
    "context of a text": (lambda m, t: perplexity(m, t, [" cat" * 600]), "has 600 tokens.*context.*512"),
    "mismatch": (
        lambda m, t: margins(m, grown(), [Pair("a", " b", " c")]),
        "129 tokens, LlamaForCausalLM embeds 128",
    ),
    "mismatched choices": (lambda m, t: chosen(m, grown(), [Pair("a", " b", " c")]), "has 129 tokens"),
    "mismatched perplexity": (lambda m, t: perplexity(m, grown(), ["a b"]), "has 129 tokens"),
    "mismatched reward": (lambda m, t: LogProb(m, grown()), "has 129 tokens"),
    "unknown token": (
        lambda m, t: log_probs(m, encoded(grown(), ["a"], ["strange"])),
        "token 128 with a model",
    ),
    "no pairs": (lambda m, t: margins(m, t, []), "no prompts"),
    "no response": (lambda m, t: log_probs(m, no_response()), "a row without a response"),
    "nothing before": (lambda m, t: log_probs(m, nothing_before()), "nothing before it"),
    "one token": (lambda m, t: perplexity(m, t, ["I not", "I"]), "text 'I' has 1 token: expected two"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_scored_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(tiny_models.text_model("llama"), tiny_models.tokenizer())


def test_a_tokenizer_with_fewer_tokens_matches():
    matched(tiny_models.text_model("llama"), tiny_models.tokenizer())
