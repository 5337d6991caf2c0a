"""Other next-token distributions: each is plain at its zero, and is what its formula says elsewhere."""

import pytest
import torch
from decoding import ENDLESS, FAMILIES, alone, counted, generate, odd, plainly, prompts
from tiny_models import text_model, tokenizer, tokens

from steer.language import decode
from steer.language.decode.dola import final_norm
from steer.language.record import recording
from steer.language.tower import Site, module_at

TOK = tokenizer()
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
MARKED = torch.arange(9).expand(2, 9) % 3 == 0


def neutral(model):
    """Every decoder at the setting that leaves the model alone."""
    return [
        decode.contrastive(model, beta=0.5, alpha=0.0),
        decode.cfg(scale=1.0),
        decode.cfg(TOK(["sad cat, no"], return_tensors="pt"), scale=1.0),
        decode.pasta(MARKED, alpha=1.0),
        decode.hidden_state_optimization(window=4, steps=0),
        decode.hidden_state_optimization(window=9),
        decode.value_guided(odd, TOK, weight=0.0, k=128),
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_at_its_zero_each_is_plain(name):
    model, inputs = prompts(name)
    expected = plainly(model, inputs, seed=2)
    for decoder in neutral(model):
        assert torch.equal(generate(model, inputs, decoder, seed=2).sequences, expected), decoder


def decoders(rows=2):
    """Every decoder at a setting that matters."""
    marked = torch.arange(9).expand(rows, 9) % 3 == 0
    return {
        "contrastive": decode.contrastive(text_model("llama"), beta=1.0),
        "cfg": decode.cfg(TOK(["sad cat"], return_tensors="pt"), scale=2.0),
        "cfg of last tokens": decode.cfg(scale=2.0),
        "dola": decode.dola((0, 1)),
        "pasta": decode.pasta(marked, alpha=0.01),
        "hidden states": decode.hidden_state_optimization(window=4, lr=0.3, clip=1.0),
        "value": decode.value_guided(odd, TOK, weight=20.0),
        "value of cfg": decode.value_guided(odd, TOK, weight=20.0, source=decode.cfg(scale=2.0)),
    }


@pytest.mark.parametrize("which", decoders())
@pytest.mark.parametrize("name", FAMILIES)
def test_row_of_a_batch_is_a_run_of_its_own(name, which):
    """Padded to 9 columns, ended at unequal places, or by itself; and none of them is plain at this setting."""
    model, inputs = prompts(name)
    both = generate(model, inputs, decoders()[which], seed=[3, 4])
    own = []
    for row in range(2):
        decoder, real = decoders()[which], inputs["attention_mask"][row].bool()
        if which == "pasta":
            decoder = decode.pasta(decoder.marked[row : row + 1, real], alpha=0.01)
        single = generate(model, alone(inputs, row), decoder, seed=[row + 3])
        assert torch.equal(both.candidates[row, :, : single.candidates.shape[2]], single.candidates[0])
        own.append(single)
    usual = generate(model, inputs, decode.plain, seed=[3, 4])
    assert both.candidates.shape != usual.candidates.shape or not torch.equal(both.candidates, usual.candidates)


@pytest.mark.parametrize("which", decoders())
def test_search_takes_each_as_its_source(which):
    """Candidate 0 of best-of-n is the decoder by itself, and blocks are what they were; tokens are counted exactly."""
    model, inputs = prompts("gemma2")
    by_itself = generate(model, inputs, decoders()[which], seed=1)
    with counted(model) as passes:
        best = generate(model, inputs, decode.best_of_n(odd, TOK, 3, decoders()[which]), seed=1)
    width = by_itself.candidates.shape[2]
    assert torch.equal(best.candidates[:, 0, :width], by_itself.candidates[:, 0])
    assert best.ledger.tokens == sum(passes)
    blocks = decode.blockwise(odd, TOK, 3, 4, source=decoders()[which])
    both = generate(model, inputs, blocks, seed=[3, 4])
    if which != "pasta":
        single = generate(model, alone(inputs, 1), blocks, seed=[4])
        assert torch.equal(both.candidates[1, :, : single.candidates.shape[2]], single.candidates[0])


def next_logp(model, ids):
    return model(input_ids=ids, use_cache=False).logits[:, -1].float().log_softmax(-1)


def greedily(score, inputs, count=8):
    """Tokens (1, count) that a function ids -> scores (1, vocabulary) likes best, one after the other."""
    ids = inputs["input_ids"]
    for _ in range(count):
        ids = torch.cat([ids, score(ids).argmax(-1, keepdim=True)], 1)
    return ids


def test_contrastive_is_its_formula():
    expert, amateur, inputs = text_model("llama"), text_model("gpt2"), tokens(1, 7)

    def score(ids):
        e, a = next_logp(expert, ids), next_logp(amateur, ids)
        return torch.where(e.exp() >= 0.1 * e.exp().max(), 1.5 * e - 0.5 * a, -torch.inf)

    found = generate(expert, inputs, decode.contrastive(amateur), max_new_tokens=8, **GREEDY)
    assert torch.equal(found.sequences, greedily(score, inputs))
    assert not torch.equal(found.sequences, greedily(lambda ids: next_logp(expert, ids), inputs))
    assert found.ledger.tokens == found.ledger.amateur_tokens == 7 + 7


def test_contrastive_with_itself_is_plain():
    model, inputs = prompts("llama")
    found = generate(model, inputs, decode.contrastive(model), **GREEDY)
    assert torch.equal(found.sequences, plainly(model, inputs, **GREEDY))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scale", [0.5, 1.5, 3.0])
def test_cfg_is_that_of_transformers(name, scale):
    """Its processor runs the negative prompts by themselves, one pass after the other; here both are one batch."""
    model, inputs, negative = text_model(name), tokens(2, 9), tokens(2, 5, seed=1)
    kwargs = {**ENDLESS, "eos_token_id": None, "max_new_tokens": 8}
    ids, mask = negative.values()
    theirs = {"guidance_scale": scale, "negative_prompt_ids": ids, "negative_prompt_attention_mask": mask}
    expected = plainly(model, inputs, **kwargs, **theirs)
    with counted(model) as passes:
        found = generate(model, inputs, decode.cfg(negative, scale), **kwargs)
    assert torch.equal(found.sequences, expected)
    assert not torch.equal(expected, plainly(model, inputs, **kwargs))
    assert passes == [2 * 2 * 9] + 7 * [2 * 2]
    assert found.ledger.tokens == sum(passes)


def test_a_negative_prompt_may_be_longer_and_padded():
    model, inputs = text_model("qwen2"), tokens(2, 4)
    negative = tokens(2, 11, seed=1, padded=5)
    kwargs = {**GREEDY, "max_new_tokens": 6}
    both = generate(model, inputs, decode.cfg(negative, 2.0), **kwargs).sequences
    assert both.shape == (2, 10)
    for row in range(2):
        single = decode.cfg(alone(negative, row), 2.0)
        assert torch.equal(generate(model, alone(inputs, row), single, **kwargs).sequences[0], both[row])


@pytest.mark.parametrize("name", [*FAMILIES, "granite", "cohere"])
def test_dola_is_its_formula(name):
    """The layer furthest from the last one by Jensen-Shannon divergence, read by norm and head of the model."""
    model, inputs = text_model(name), tokens(1, 7)

    def score(ids):
        with recording(model, [0, 1]) as found:
            final = next_logp(model, ids)[0]
        p, best = final.exp(), None
        for layer in (0, 1):
            state = final_norm(model)(found[Site(layer)][0][:, -1])
            q = scaled(model, model.get_output_embeddings()(state))[0].softmax(-1)
            middle = (p + q) / 2
            jsd = ((p * (p / middle).log()).nansum() + (q * (q / middle).log()).nansum()) / 2
            best = (jsd, q) if best is None or jsd > best[0] else best
        return torch.where(p >= 0.1 * p.max(), final - best[1].log(), -torch.inf)[None]

    found = generate(model, inputs, decode.dola((0, 1)), max_new_tokens=8, **GREEDY)
    assert torch.equal(found.sequences, greedily(score, inputs))


def scaled(model, logits):
    """What each family does to its logits behind its head."""
    config = model.config
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        return cap * torch.tanh(logits / cap)
    return logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)


@pytest.mark.parametrize(("layers", "expected"), [("low", [0]), ("high", [1]), ((0, -2), [0, 1])])
def test_dola_names_layers(layers, expected):
    *places, last = decode.dola(layers)._places(text_model("llama"))
    assert [place.layer for place in places] == expected
    assert last.layer == 2


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_pasta_scales_attention_of_what_is_not_marked(name):
    """In the first block a_ij becomes alpha a_ij / C at chosen heads, and stays as it is at others."""
    model, inputs = text_model(name), tokens(1, 9)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        plain, steered = (weights_of(model, inputs, decoder) for decoder in (decode.plain, decode.pasta(
            MARKED[:1], {0: [1, 3]}, alpha=0.2
        )))  # fmt: skip
    finally:
        model.set_attn_implementation(before)
    expected = plain.clone()
    expected[:, [1, 3]] *= torch.where(MARKED[0], 1.0, 0.2)
    torch.testing.assert_close(steered, expected / expected.sum(-1, keepdim=True))


def weights_of(model, inputs, decoder):
    """(1, heads, columns, columns) attention of the first block while it reads the prompt."""
    found = []
    hook = module_at(model, Site(0, "attention")).register_forward_hook(lambda m, args, out: found.append(out[1]))
    try:
        generate(model, inputs, decoder, max_new_tokens=2, **GREEDY)
    finally:
        hook.remove()
    return found[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_pasta_goes_on_as_it_would_from_a_longer_prompt(name):
    """What is generated is attended as if marked: with a cache, under its window, and read again as a prompt."""
    model, inputs = text_model(name), tokens(1, 9)
    kwargs = {**GREEDY, "max_new_tokens": 8}
    whole = generate(model, inputs, decode.pasta(MARKED[:1], {0: [0], 1: [1, 2]}, 0.01), **kwargs).sequences
    longer = {"input_ids": whole[:, :13], "attention_mask": torch.ones(1, 13, dtype=torch.long)}
    marked = torch.cat([MARKED[:1], torch.ones(1, 4, dtype=torch.bool)], 1)
    kwargs["max_new_tokens"] = 4
    assert torch.equal(
        generate(model, longer, decode.pasta(marked, {0: [0], 1: [1, 2]}, 0.01), **kwargs).sequences, whole
    )


def test_pasta_leaves_no_hook():
    model, inputs = prompts("llama")
    before = generate(model, inputs, decode.plain).sequences
    generate(model, inputs, decode.pasta(MARKED))
    assert torch.equal(generate(model, inputs, decode.plain).sequences, before)
    assert not module_at(model, Site(0, "attention"))._forward_pre_hooks


def test_hidden_states_cost_what_the_ledger_says():
    model, inputs = prompts("llama")
    with counted(model) as passes:
        found = generate(model, inputs, decode.hidden_state_optimization(window=4, steps=2), **GREEDY)
    assert passes == [2 * 5, 2 * 4, 2 * 4, 2 * 4] + 11 * [2]
    assert (found.ledger.tokens, found.ledger.backward_tokens) == (sum(passes), 2 * 2 * 4)


def test_value_guided_is_its_formula():
    """ARGS, greedy: of the three likeliest tokens the one with the largest logit + w r(text with it)."""
    model, inputs = text_model("llama"), tokens(1, 7)
    prompt = TOK.decode(inputs["input_ids"][0], skip_special_tokens=True)

    def score(ids):
        logits, said = model(input_ids=ids).logits[0, -1], ids[0, 7:].tolist()
        scores = torch.full_like(logits, -torch.inf)
        for token in logits.topk(3).indices.tolist():
            text = TOK.decode([*said, token], skip_special_tokens=True)
            scores[token] = logits[token] + 10 * odd([text], [prompt])[0]
        return scores[None]

    found = generate(model, inputs, decode.value_guided(odd, TOK, 10.0, k=3), max_new_tokens=8, **GREEDY)
    assert torch.equal(found.sequences, greedily(score, inputs))
    assert found.ledger.reward_calls == 3 * 8


def test_no_weight_is_top_k_sampling():
    model, inputs = prompts("llama")
    found = generate(model, inputs, decode.value_guided(odd, TOK, 0.0, k=5))
    assert torch.equal(found.sequences, plainly(model, inputs, top_k=5))


def test_a_token_whose_value_failed_does_not_come():
    model, inputs = prompts("llama")
    likeliest = generate(model, inputs, decode.plain, **GREEDY).candidates[:, 0, 0]
    said = set(TOK.batch_decode(likeliest[:, None]))

    def value(texts, prompts):
        return torch.tensor([torch.nan if text in said else 0.0 for text in texts])

    found = generate(model, inputs, decode.value_guided(value, TOK), max_new_tokens=1, **GREEDY)
    assert (found.candidates[:, 0, 0] != likeliest).all()
    broken = decode.value_guided(lambda texts, prompts: torch.full((len(texts),), torch.nan), TOK)
    with pytest.warns(UserWarning, match="all values of a row"):
        found = generate(model, inputs, broken, **GREEDY)
    assert torch.equal(found.sequences, plainly(model, inputs, **GREEDY))
