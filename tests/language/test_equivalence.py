"""The same text however it is computed: a matrix of architectures x laws, and of edits x scopes on some of them.

With a cache or without, in a batch or alone, with any cache class, in beams, in chunks, with an assistant, in one pass
over the finished text: a steered model says the same. And a strength of 0, or a closed context, leave no trace.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from equivalence import (
    ALL,
    EDITS,
    PADDED,
    SCOPES,
    Way,
    answered,
    forward,
    generate,
    greedy,
    heard,
    inputs,
    model,
    rows_alone,
    same,
)
from tiny_models import TEXT
from tiny_vlms import VISION, row_of
from transformers import DynamicCache

from steer.language import Site, recording
from steer.language.decode.stream import cache_name

KINDS = [*EDITS]
PLACES = [*SCOPES]
SITES: list[tuple[int | str, ...]] = [(0, 1), ("1.mlp",), (0, "1.attention"), ("1.heads", 2)]
EVERYWHERE = ["gemma2", "qwen3_vl"]  # sliding windows and a soft cap; three axes and deeper image features


def ways(name: str) -> Way:
    """Every architecture gets other sites, another edit and scope, so that the matrix of laws covers them."""
    k = ALL.index(name)
    places = PLACES if name in VISION else PLACES[:-1]
    return Way(KINDS[k % len(KINDS)], SCOPES[places[k % len(places)]], SITES[k % len(SITES)])


def law_cached_is_uncached(name: str, way: Way) -> None:
    plain = greedy(name, inputs(name))
    with way.on(name):
        cached = greedy(name, inputs(name))
        same(greedy(name, inputs(name), use_cache=False), cached)
    heard(cached[1], plain[1])


def law_batch_is_single(name: str, way: Way) -> None:
    with way.on(name):
        tokens, logits = greedy(name, inputs(name))
    for row, alone in enumerate(rows_alone(name, way, greedy)):
        same((tokens[row : row + 1], logits[row : row + 1]), alone)


def law_forward_is_generate(name: str, way: Way) -> None:
    """One pass over prompt and answer, told where the prompt ends."""
    given = inputs(name)
    with way.on(name):
        tokens, logits = greedy(name, given)
    prompt = given["input_ids"].shape[1]
    longer = answered(name, given, tokens)
    if name in TEXT and name != "bloom":
        longer["position_ids"] = (longer["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with way.on(name, prompt_length=prompt):
        same((tokens, forward(name, longer)[:, prompt - 1 : -1]), (tokens, logits))


def law_static_is_dynamic(name: str, way: Way) -> None:
    if name == "paligemma2":
        pytest.skip("transformers itself cannot: it hands the static cache's masks to a model that makes its own")
    with way.on(name):
        dynamic = greedy(name, inputs(name))
        same(greedy(name, inputs(name), cache_implementation="static"), dynamic)


def law_beams_are_aligned(name: str, way: Way) -> None:
    """Each row's own strength and vector follow its beams: in a batch, alone, and without a cache."""
    own = replace(way, seeds=(1, 2), change={"strength": [0.7, 0.3]})
    settings = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}

    def beams(name, given, **more):
        out = generate(name, given, do_sample=False, **settings, **more)
        return out.sequences[:, given["input_ids"].shape[1] :], out.sequences_scores

    with own.on(name):
        together = beams(name, inputs(name))
        same(beams(name, inputs(name), use_cache=False), together)
    for row, alone in enumerate(rows_alone(name, own, beams)):
        same(tuple(part[2 * row : 2 * row + 2] for part in together), alone)


def law_returned_sequences_are_aligned(name: str, way: Way) -> None:
    """Sampling from one token is greedy, however many sequences of a prompt are drawn."""
    own = replace(way, seeds=(1, 2), change={"strength": [0.7, 0.3]})
    with own.on(name):
        tokens, logits = greedy(name, inputs(name))
        several = greedy(name, inputs(name), do_sample=True, top_k=1, num_return_sequences=2)
    same(several, (tokens.repeat_interleave(2, 0), logits.repeat_interleave(2, 0)))


def law_rows_have_their_own_strength(name: str, way: Way) -> None:
    own = replace(way, seeds=(1, 2), change={"strength": [0.7, 0.3]})
    law_batch_is_single(name, own)


def law_zero_is_identity(name: str, way: Way) -> None:
    """Bit for bit: for all rows, and for a row among others."""
    plain, given = forward(name, inputs(name)), inputs(name)
    with way.on(name, strength=0.0):
        assert torch.equal(forward(name, given), plain)
    with way.on(name, strength=[0.0, 0.8], prompt_length=given["input_ids"].shape[1]):
        mixed = forward(name, given)
    real = given["attention_mask"].bool()
    assert torch.equal(mixed[0][real[0]], plain[0][real[0]])
    heard(mixed[1], plain[1])


def law_nothing_is_left(name: str, way: Way) -> None:
    """After a context, and after an exception in it: weights, hooks and results of before, bit for bit."""
    network, given = model(name), inputs(name)

    def hooks():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]

    plain, before = forward(name, given), hooks()
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(KeyError), way.on(name):
        raise KeyError(forward(name, given))
    with pytest.raises(IndexError), way.on(name):
        network(torch.full((1, 3), 10**6))
    assert hooks() == before
    assert "generate" not in network.__dict__
    after = network.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    assert torch.equal(forward(name, given), plain)


def law_vectors_commute(name: str, way: Way) -> None:
    """Adding does, at one layer as at two; keeping the norm between two additions does not."""
    given, length = inputs(name), {"prompt_length": 12}

    def both(first, second):
        outer, inner = first.on(name, **length), second.on(name, **length)
        with outer, inner:
            return forward(name, given)

    for sites, others in (((1,), (1,)), ((0,), (2,))):
        a = Way("add, norm not kept", way.where, sites, seeds=(1,))
        b = Way("add, norm not kept", way.where, others, seeds=(2,))
        found, wanted = both(a, b), both(b, a)
        torch.testing.assert_close(found, wanted, atol=1e-4 * wanted.std().item(), rtol=0)
    a, b = Way("add", way.where, (1,), seeds=(1,)), Way("add", way.where, (1,), seeds=(2,))
    heard(both(a, b), both(b, a), by=1e-3)


def law_contexts_close_in_any_order(name: str, way: Way) -> None:
    other = Way("add", "all", (2,), seeds=(1,))
    given, plain = inputs(name), forward(name, inputs(name))
    with other.on(name):
        wanted = greedy(name, given)
    first, second = ExitStack(), ExitStack()
    first.enter_context(way.on(name))
    second.enter_context(other.on(name))
    first.close()
    with second:
        found = greedy(name, given)
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(forward(name, given), plain)


LAWS = [
    law_cached_is_uncached,
    law_batch_is_single,
    law_forward_is_generate,
    law_static_is_dynamic,
    law_beams_are_aligned,
    law_returned_sequences_are_aligned,
    law_rows_have_their_own_strength,
    law_zero_is_identity,
    law_nothing_is_left,
    law_vectors_commute,
    law_contexts_close_in_any_order,
]
ON_EDITS = [law_cached_is_uncached, law_batch_is_single, law_forward_is_generate, law_zero_is_identity]


def title(law) -> str:
    return law.__name__.removeprefix("law_")


@pytest.mark.parametrize("law", LAWS, ids=title)
@pytest.mark.parametrize("name", ALL)
def test_law(name, law):
    law(name, ways(name))


@pytest.mark.parametrize("law", ON_EDITS, ids=title)
@pytest.mark.parametrize("where", SCOPES)
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", EVERYWHERE)
def test_edit_and_scope(name, edit, where, law):
    if where == "image" and name not in VISION:
        pytest.skip("no images")
    law(name, Way(edit, SCOPES[where]))


COLUMNS = {
    "all": (range(12), range(12)),
    "prompt": (range(9), range(9)),
    "generated": (range(8, 12), range(8, 12)),
    "last": ([8], [8]),
    "positions": ([1, 7], [PADDED + 1, 7]),
    "mask": ([2, 5, 11], [4, 11]),
    "image": (range(2, 6), range(PADDED + 2, PADDED + 6)),
}


@pytest.mark.parametrize("where", SCOPES)
@pytest.mark.parametrize("name", ["gpt2", "llava"])
def test_scopes_are_these_columns(name, where):
    """Behind the last block nothing but the columns of a scope changes; the prompt is the first 9."""
    if where == "image" and name not in VISION:
        pytest.skip("no images")
    states = []
    for strength in (0.0, 0.5):
        way = Way("add", SCOPES[where], (2,))
        with way.on(name, strength=strength, prompt_length=9), recording(model(name), [2]) as found:
            forward(name, inputs(name))
        states.append(found[Site(2)][0])
    changed = (states[0] != states[1]).any(-1)
    assert [row.nonzero()[:, 0].tolist() for row in changed] == [list(row) for row in COLUMNS[where]]


@pytest.mark.parametrize("name", TEXT)
def test_other_ways_to_generate(name):
    """Chunks of prompt, embeddings for tokens, a cache filled before, guesses of the prompt or a model: one text."""
    way, given = ways(name), inputs(name)
    with way.on(name):
        wanted = greedy(name, given)
        same(greedy(name, given, prefill_chunk_size=5), wanted)
        embeds = model(name).get_input_embeddings()(given["input_ids"])
        out = generate(name, {"inputs_embeds": embeds, "attention_mask": given["attention_mask"]}, do_sample=False)
    assert torch.equal(out.sequences, wanted[0])
    alone, assistant = row_of(given, 0), model("qwen2" if name == "llama" else "llama")
    with way.of_row(0).on(name):
        wanted = greedy(name, alone)
        same(greedy(name, alone, prompt_lookup_num_tokens=2), wanted)
        same(greedy(name, alone, assistant_model=assistant), wanted)
    filled = {cache_name(model(name)): DynamicCache(config=model(name).config)}
    with way.of_row(0).on(name, prompt_length=12), torch.no_grad():
        model(name)(**{key: value[:, :8] for key, value in alone.items()}, **filled, use_cache=True)
    with way.of_row(0).on(name):
        same(greedy(name, alone, **filled), wanted)
