"""Steering that is open around guided decoding: rows are dropped and copied, each keeps what its prompt was given."""

import pytest
import torch
from decoding import alone, generate, odd, plainly, prompts, seeded
from tiny_models import tokenizer

from steer.language import Gate, SteeringVector, decode, steering

TOK = tokenizer()
VECTOR = SteeringVector({1: torch.randn(32, generator=seeded(1))})
OTHER = SteeringVector({1: torch.randn(32, generator=seeded(2))})
PUSHES = {
    "all": {"vector": VECTOR},
    "generated": {"vector": VECTOR, "where": "generated"},
    "one vector a row": {"vector": [VECTOR, OTHER, VECTOR]},
    "one strength a row": {"vector": VECTOR, "strength": [4.0, 0.0, -4.0]},
    "a gate": {"vector": VECTOR, "gate": Gate(OTHER, 0.0)},
}


def push(which, row=None):
    """What `steering` is given, for all three prompts or for one of them."""
    how = {"strength": 4.0, "relative": False, **PUSHES[which]}
    if row is not None:
        how = {name: value[row] if isinstance(value, list) else value for name, value in how.items()}
    return how


@pytest.mark.parametrize("which", PUSHES)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_one_candidate_is_the_steered_plain_call(name, which):
    model, inputs = prompts(name, rows=3, padded=2)
    with steering(model, **push(which)):
        expected = plainly(model, inputs)
        found = generate(model, inputs, decode.plain).sequences
        first = generate(model, inputs, decode.best_of_n(odd, TOK, n=3)).candidates[:, 0]
    assert torch.equal(found, expected)
    assert not torch.equal(expected, plainly(model, inputs))
    said = expected[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(first[:, : said.shape[1]], said)


@pytest.mark.parametrize("which", PUSHES)
@pytest.mark.parametrize(
    "source", [decode.plain, decode.cfg(scale=2.0), decode.dola((0, 1))], ids=["plain", "cfg", "dola"]
)
def test_steered_search_of_a_batch_is_that_of_each_prompt(which, source):
    model, inputs = prompts("llama", rows=3, padded=2)
    search = decode.blockwise(odd, TOK, 3, 4, source=source)
    with steering(model, **push(which)):
        both = generate(model, inputs, search, seed=[1, 2, 3])
    for row in range(3):
        with steering(model, **push(which, row)):
            single = generate(model, alone(inputs, row), search, seed=[row + 1])
        assert torch.equal(both.candidates[row, :, : single.candidates.shape[2]], single.candidates[0])
