"""Search over text: the same tokens as without its economies, and exactly what they cost."""

import itertools
import warnings

import pytest
import torch
from decoding import ENDLESS, FAMILIES, SAMPLED, alone, anew, counted, generate, odd, plainly, prompts, seeded
from tiny_models import IMAGE, VIDEO, text_model, tokenizer, tokens
from tiny_vlms import VISION, row_of, vision_inputs, vision_model

from steer.language import decode
from steer.pick import greedy, multinomial, one, prune, stay, systematic, top_k
from steer.plan import diverse, narrow, roll_over

TOK = tokenizer()


def search(n=4, block=4, reward=odd, **kwargs):
    return decode.blockwise(reward, TOK, n, block, **kwargs)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "decoder", [decode.plain, search(n=1), decode.best_of_n(odd, TOK, n=1)], ids=["plain", "blockwise", "best_of_n"]
)
def test_one_candidate_is_plain_sampling(name, decoder):
    model, inputs = prompts(name)
    expected = plainly(model, inputs, seed=5)
    assert torch.equal(generate(model, inputs, decoder, seed=5).sequences, expected)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # without a generator torch's global one draws, as in transformers
        found = model.generate(**inputs, custom_generate=decoder, max_new_tokens=12, **SAMPLED)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_processors_act_as_in_a_plain_call(name):
    model, inputs = prompts(name)
    settings = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.3}
    assert torch.equal(generate(model, inputs, search(n=1), **settings).sequences, plainly(model, inputs, **settings))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pick", [greedy, one, systematic], ids=repr)
def test_tokens_are_those_of_reading_everything_anew(name, pick):
    """Texts end at unequal places, prompts are padded, and with a window of 8 the cache of Gemma 2 slides."""
    model, inputs = prompts(name, rows=3)
    expected = anew(model, inputs, odd, 4, 4, 12, pick)
    found = generate(model, inputs, search(pick=pick))
    assert torch.equal(found.candidates, expected)
    assert len(found.lengths.unique()) > 1


def test_tokens_under_a_hook_that_shifts_states():
    model, inputs = prompts("llama")
    shift = torch.randn(32, generator=seeded())
    before = generate(model, inputs, search()).candidates
    hook = model.get_decoder().layers[1].register_forward_hook(lambda module, args, out: out + shift)
    try:
        expected = anew(model, inputs, odd, 4, 4, 12, greedy)
        found = generate(model, inputs, search()).candidates
    finally:
        hook.remove()
    assert torch.equal(found, expected)
    assert found.shape != before.shape or not torch.equal(found, before)


@pytest.mark.parametrize("name", FAMILIES)
def test_row_of_a_batch_is_a_run_of_its_own(name):
    """With a generator a prompt, its texts and weights do not depend on the others, not even when all of them ended."""
    (model, inputs), soon = prompts(name, rows=3), {"eos_token_id": [*range(40, 80)]}
    both = generate(model, inputs, search(pick=multinomial), seed=[1, 2, 3], **soon)
    for row in range(3):
        single = generate(model, alone(inputs, row), search(pick=multinomial), seed=[row + 1], **soon)
        width = single.candidates.shape[2]
        assert torch.equal(both.candidates[row, :, :width], single.candidates[0])
        assert torch.equal(both.lengths[row], single.lengths[0])
        assert torch.equal(both.rewards[row], single.rewards[0])
        assert torch.equal(both.logw[row], single.logw[0])


def test_candidates_do_not_depend_on_how_many_there_are():
    model, inputs = prompts("qwen2")
    few, many = (generate(model, inputs, decode.best_of_n(odd, TOK, n)).candidates for n in (2, 5))
    width = few.shape[2]
    assert torch.equal(many[:, :2, :width], few)
    assert len({tuple(c.tolist()) for c in many[0]}) == 5


def test_a_second_call_with_the_same_generator_draws_anew():
    model, inputs = prompts("llama")
    generator = seeded()
    first, second = (
        model.generate(**inputs, custom_generate=search(), generator=generator, do_sample=True, max_new_tokens=8)
        for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_a_block_as_long_as_the_text_is_best_of_n():
    model, inputs = prompts("llama")
    long, best = generate(model, inputs, search(block=12)), generate(model, inputs, decode.best_of_n(odd, TOK))
    assert torch.equal(long.sequences, best.sequences)
    assert torch.equal(best.rewards, long.rewards)
    assert long.ledger.tokens == best.ledger.tokens


def test_the_winner_has_the_highest_score():
    model, inputs = prompts("llama")
    found = generate(model, inputs, decode.best_of_n(odd, TOK))
    winner = found.rewards.argmax(1)
    assert winner.tolist() != [0, 0]
    said = found.sequences[:, inputs["input_ids"].shape[1] :]
    for row, k in enumerate(winner):
        assert torch.equal(found.candidates[row, k, : said.shape[1]], said[row])
        text = TOK.decode(found.candidates[row, k], skip_special_tokens=True)
        prompt = TOK.decode(inputs["input_ids"][row], skip_special_tokens=True)
        assert float(odd([text], [prompt])) == pytest.approx(float(found.rewards[row, k]))


def test_rewards_read_the_prompts_as_they_were_written():
    """Markers of a chat are in them, padding is not; texts come without special tokens."""
    asked = [[{"role": "user", "content": text}] for text in ("a cat", "Is it?")]
    chats = [TOK.apply_chat_template(messages, tokenize=False) for messages in asked]
    seen = []

    def reward(texts, prompts):
        seen.extend(zip(texts, prompts))
        return odd(texts, prompts)

    generate(text_model("llama"), TOK(chats, return_tensors="pt", padding=True), search(reward=reward))
    assert {prompt for _, prompt in seen} == set(chats)
    assert not any(special in text for text, _ in seen for special in TOK.all_special_tokens)


def test_a_large_beta_is_greedy():
    model, inputs = prompts("gpt2")
    hard, soft = generate(model, inputs, search()), generate(model, inputs, search(pick=one, beta=1e6))
    assert torch.equal(hard.candidates, soft.candidates)
    assert not torch.equal(generate(model, inputs, search(pick=one, beta=0.0)).candidates, hard.candidates)


def test_token_evaluations_are_at_most_half_of_reading_each_block_anew():
    """K = 4, M = 16: the ledger counts what ran, and that is what the docstring says."""
    model, inputs = text_model("llama"), tokens(2, 16)
    rows, columns, n, block, total = 2, 16, 4, 16, 64
    with counted(model) as passes:
        found = generate(model, inputs, search(n, block), max_new_tokens=total, eos_token_id=None, **ENDLESS)
    blocks = total // block
    assert found.ledger.tokens == sum(passes) == rows * (columns + blocks * (n * (block - 1) + 1) - 1)
    anew = rows * n * sum(columns + b * block + block - 1 for b in range(blocks))
    assert found.ledger.tokens <= anew / 2
    best = generate(model, inputs, decode.best_of_n(odd, TOK, n), max_new_tokens=total, eos_token_id=None, **ENDLESS)
    assert best.ledger.tokens == rows * (columns + n * (total - 1))
    assert (found.ledger.reward_calls, best.ledger.reward_calls) == (rows * n * blocks, rows * n)


@pytest.mark.parametrize("pick", [greedy, systematic, top_k(2), prune(2), stay], ids=repr)
def test_who_has_ended_costs_nothing_more(pick):
    """The ledger counts what ran, also when texts end, and every text that ended is scored once."""
    model, inputs = prompts("llama", rows=3)
    scored = []

    def reward(texts, prompts):
        scored.append(len(texts))
        return odd(texts, prompts)

    with counted(model) as passes:
        found = generate(model, inputs, search(pick=pick, reward=reward))
    assert found.ledger.tokens == sum(passes) < 3 * (9 + 4 * 11)
    assert found.ledger.reward_calls == sum(scored) < 12 * len(found.trace)
    assert max(passes[1:]) <= 12
    if pick is stay:  # nobody is dropped: each row runs to its own end, whose token the model need not see
        assert sum(passes) == inputs["input_ids"].numel() + int((found.lengths - 1).sum())


def test_rewards_that_compare_texts_see_all_of_them():
    model, inputs = prompts("llama", rows=3)

    class Ranked:
        pointwise = False

        def __call__(self, texts, prompts):
            sizes.append(len(texts))
            return odd(texts, prompts)

    sizes = []
    generate(model, inputs, search(reward=Ranked()))
    assert set(sizes) == {12}


def test_blocks_of_one_token_cost_as_much_as_plain():
    """n next tokens come from one row: a choice among them is free."""
    model, inputs = text_model("llama"), tokens(1, 5)
    found = generate(model, inputs, search(n=8, block=1), eos_token_id=None, **ENDLESS)
    assert found.ledger.tokens == 5 + 11
    assert found.ledger.reward_calls == 8 * 12


def test_smc_follows_the_tilted_distribution():
    """p(y) exp(beta r(y)) / Z of all texts of two tokens out of five, against 1000 weighted candidates."""
    model, inputs, beta, words = text_model("llama"), tokens(1, 6), 3.0, [100, 101, 102, 103, 104]
    only = {"suppress_tokens": [t for t in range(128) if t not in words]}
    texts = [*itertools.product(words, repeat=2)]
    ids = torch.cat([inputs["input_ids"].expand(len(texts), -1), torch.tensor(texts)], 1)
    logp = model(input_ids=ids).logits[:, 5:-1][..., words].log_softmax(-1)
    place = torch.tensor([[words.index(t) for t in text] for text in texts])
    prompt = TOK.decode(inputs["input_ids"][0], skip_special_tokens=True)
    reward = odd(TOK.batch_decode(texts), [prompt] * len(texts))
    exact = torch.softmax(logp.gather(2, place[..., None]).sum((1, 2)) + beta * reward, 0)

    n = 1000
    found = generate(
        model, inputs, decode.smc(odd, TOK, n, block=1, beta=beta), max_new_tokens=2, eos_token_id=None,
        do_sample=True, pad_token_id=0, **only,
    )  # fmt: skip
    weights = torch.softmax(found.logw[0], 0)
    number = {text: k for k, text in enumerate(texts)}
    which = torch.tensor([number[tuple(c.tolist())] for c in found.candidates[0]])
    estimate = torch.zeros(len(texts)).index_add(0, which, weights)
    assert (estimate - exact).abs().sum() / 2 < 0.08
    flat = torch.softmax(logp.gather(2, place[..., None]).sum((1, 2)), 0)
    assert (flat - exact).abs().sum() / 2 > 0.2
    assert len(found.trace) == 2


def test_plans_serve_texts():
    model, inputs = text_model("llama"), tokens(2, 6)
    settings = {"eos_token_id": None, **ENDLESS}
    with counted(model) as passes:
        found = generate(model, inputs, search(pick=narrow((4, 2, 1))), **settings)
    assert found.ledger.tokens == sum(passes) == 2 * (6 + 4 * 3 + 2 + 2 * 3 + 1 + 3)
    assert torch.isneginf(found.rewards).sum(1).tolist() == [3, 3]
    beams, unlike = (generate(model, inputs, search(pick=pick), **settings) for pick in (top_k(2), diverse(2, 0.0)))
    assert torch.equal(beams.candidates, unlike.candidates)
    assert not torch.equal(
        generate(model, inputs, search(pick=diverse(2, 5.0)), **settings).candidates, beams.candidates
    )
    rolled = generate(model, inputs, search(n=6, pick=roll_over(2)), **settings)
    assert rolled.ledger.reward_calls <= 2 * 2 * 3


def test_lineage_leads_to_the_ancestors():
    """A text's first block is the first block that its ancestor drew."""
    model, inputs = text_model("llama"), tokens(2, 6)
    settings = {"eos_token_id": None, **ENDLESS}
    first = generate(model, inputs, decode.best_of_n(odd, TOK), max_new_tokens=4, **settings).candidates
    found = generate(model, inputs, search(pick=multinomial), **settings)
    assert found.lineage.shape == (2, 3, 4)
    for row in range(2):
        for k in range(4):
            ancestor = found.lineage[row, 1][found.lineage[row, 2, k]]
            assert torch.equal(found.candidates[row, k, :4], first[row, ancestor])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_failed_candidate_never_continues(value):
    model, inputs = prompts("llama")

    def reward(texts, prompts):
        scores = odd(texts, prompts)
        return torch.where(scores > 0.5, value, scores)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = generate(model, inputs, search(n=8, reward=reward), eos_token_id=None, **ENDLESS)
    for look in found.trace[:-1]:
        assert torch.isfinite(look.scores.gather(1, look.index)).all()
    assert torch.isneginf(found.trace[0].scores).any()


def test_all_failed_keeps_the_first_candidate_and_says_so():
    model, inputs = prompts("llama")
    with pytest.warns(UserWarning, match="candidate 0 is kept"):
        found = generate(model, inputs, search(reward=lambda texts, prompts: torch.full((len(texts),), torch.nan)))
    assert torch.equal(found.sequences, plainly(model, inputs))


def test_sequences_alone_are_what_generate_returns():
    model, inputs = prompts("llama")
    out = model.generate(**inputs, custom_generate=search(), generator=seeded(), do_sample=True, max_new_tokens=6)
    assert isinstance(out, torch.Tensor)
    assert out.shape[0] == 2
    several = model.generate(
        **inputs, custom_generate=search(), generator=seeded(), do_sample=True, max_new_tokens=6, num_return_sequences=3
    )
    assert several.shape[0] == 6  # every returned sequence is the winner of its own candidates


@pytest.mark.parametrize("name", VISION)
def test_pictures_follow_their_prompt(name):
    """Every family of vision-language models: one candidate is plain, and a row of a batch is a run of its own."""
    model, inputs = vision_model(name), vision_inputs(name, rows=2, padded=2)
    kwargs = {"suppress_tokens": [IMAGE, VIDEO], "max_new_tokens": 8}
    assert torch.equal(generate(model, inputs, decode.plain, **kwargs).sequences, plainly(model, inputs, **kwargs))
    both = generate(model, inputs, search(3, 3), seed=[1, 2], **kwargs)
    for row in range(2):
        single = generate(model, row_of(inputs, row), search(3, 3), seed=[row + 1], **kwargs)
        assert torch.equal(both.candidates[row, :, : single.candidates.shape[2]], single.candidates[0])
