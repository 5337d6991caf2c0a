"""From attributions to vectors: which tokens are chosen, what masking them moves, which direction comes out."""

from dataclasses import replace

import pytest
import torch
from grains_toys import planted, wordy
from tiny_models import PAD, text_model, tokenizer
from tiny_vlms import vision_model

from steer.language import SteeringVector, recording, steering
from steer.language.data import Pair
from steer.language.grains import Attribution, Chosen, attribute, chosen, contrast, fit
from steer.language.grains.baselines import mask_id
from steer.language.grains.margin import preference
from steer.language.tower import Site, tower

PAIR = Pair("<s>Is the cat good and happy?", " Yes I is a dog", " No not")
SCORES = (9.0, 3.0, -1.0, 2.0, -5.0, 0.0, 1.0, -2.0)


def scored(scores=SCORES, allowed=None, image=None):
    count = len(scores)
    mask = torch.tensor([k > 0 for k in range(count)] if allowed is None else allowed)
    image = torch.zeros(count, dtype=torch.bool) if image is None else torch.tensor(image)
    words = tuple(f"w{k}" for k in range(count))
    return Attribution(
        PAIR, words, torch.arange(count), torch.tensor(scores), mask, image, 1.0, 0.0, 0.0, 1, "ig", "random"
    )


def places(found: Chosen) -> tuple[list[int], list[int]]:
    return found.positive.tolist(), found.negative.tolist()


def test_the_most_of_each_sign_are_chosen():
    assert places(chosen(scored(), 2)) == ([1, 3], [4, 7])
    assert places(chosen(scored(), 1)) == ([1], [4])


def test_fewer_of_a_sign_are_taken_and_logged(caplog):
    with caplog.at_level("INFO"):
        assert places(chosen(scored(), 10)) == ([1, 3, 6], [4, 7, 2])
    assert "fewer than 10" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        chosen(scored(), 2)
    assert not caplog.records


def test_text_and_image_are_ranked_apart_or_together():
    image = [k in (3, 4, 5) for k in range(8)]
    found = scored(image=image)
    assert places(chosen(found, (1, 1))) == ([1, 3], [7, 4])
    assert places(chosen(found, (0, 2))) == ([3], [4])
    assert places(chosen(found, 2)) == ([1, 3], [4, 7])


def test_random_tokens_are_as_many_and_other_ones():
    wanted = chosen(scored(), 10)
    drawn = [chosen(scored(), 10, "rand", seed) for seed in range(20)]
    for one in drawn:
        assert list(map(len, one)) == list(map(len, wanted))
        together = torch.cat(one).tolist()
        assert len(set(together)) == len(together)
        assert 0 not in together
    assert len({tuple(one.positive.tolist()) for one in drawn}) > 5
    assert places(drawn[3]) == places(chosen(scored(), 10, "rand", 3))


def test_absolute_scores_have_no_sign():
    assert places(chosen(scored(), 3, "abs")) == ([4, 1, 3], [4, 1, 3])
    assert places(chosen(scored((0.0, 1.0, -2.0)), 1, "abs")) == ([2], [2])


@pytest.mark.parametrize(("k", "top", "message"), [(0, "signed", "k=0"), (-1, "signed", "k=-1"), (5, "best", "top=")])
def test_bad_choices(k, top, message):
    with pytest.raises(ValueError, match=message):
        chosen(scored(), k, top)


def test_a_mask_is_the_pad_token_even_if_its_number_is_0():
    assert PAD == 0
    assert mask_id(tokenizer()) == 0


def states(model, ids, site):
    with recording(model, [site]) as found, torch.no_grad():
        model(input_ids=ids[None])
    return found[site][0][0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom"])
@pytest.mark.parametrize("at", ["prompt_last", "response_last"])
def test_contrasts_are_those_of_masked_texts(name, at):
    """Ids with pads in them, prompt and response alone in a row, states behind the block and before the last norm."""
    model, tokens = text_model(name, torch.float64), Chosen(torch.tensor([3, 1]), torch.tensor([5]))
    sites = [Site(0), Site(2), Site(1, "attention")]
    found = contrast(model, tokenizer(), PAIR, tokens, sites, at)
    prompt = torch.tensor(tokenizer()(PAIR.prompt)["input_ids"])
    answers = [torch.tensor(tokenizer()(text)["input_ids"]) for text in PAIR.options]
    for side, gone in zip(found[:2], tokens):
        for site in sites:
            expected = []
            for answer in answers if at == "response_last" else [prompt[:0]]:
                masked = prompt.clone()
                masked[gone] = PAD
                with_, without = (states(model, torch.cat([part, answer]), site)[-1] for part in (prompt, masked))
                expected.append(with_ - without)
            torch.testing.assert_close(side[site], torch.stack(expected).float(), atol=2e-5, rtol=1e-4)
            assert side[site].abs().max() > 1e-3


def test_masks_touch_chosen_prompt_tokens_and_nothing_else():
    model, tokens = text_model("llama", torch.float64), Chosen(torch.tensor([3, 1]), torch.tensor([5]))
    calls = []
    hook = tower(model).decoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    try:
        contrast(model, tokenizer(), PAIR, tokens, [0], "response_last")
    finally:
        hook.remove()
    kwargs = next(call for call in calls[::-1] if call.get("attention_mask") is not None)
    rows = kwargs["inputs_embeds"]
    same = (rows[1:] == rows[:1]).all(-1)
    assert same[0].logical_not().nonzero()[:, 0].tolist() == [1, 3]
    assert same[1].logical_not().nonzero()[:, 0].tolist() == [5]
    assert rows.shape[1] == sum(len(tokenizer()(text)["input_ids"]) for text in (PAIR.prompt, *PAIR.options))
    assert kwargs["attention_mask"].expand(3, -1, -1, -1).diagonal(dim1=2, dim2=3).all()  # masked tokens are still seen


def cosine(vector: SteeringVector, direction, site=Site(2)) -> float:
    v = vector.directions[site]
    return float(torch.nn.functional.cosine_similarity(v, direction.float(), dim=0))


def test_the_token_that_is_read_is_not_masked():
    """A state at a token that is gone shows that token's own change, and no evidence."""
    model, w = planted()
    pairs = [
        Pair(f"<s>{evidence} it{last}", " Yes", " No")
        for evidence, last in ((" good bad", " happy"), (" sad yes", " no"))
    ]
    vector = fit(model, tokenizer(), pairs, 3, method="mean", sites=[2])
    assert vector.provenance["masked"] == "2, 2"
    assert cosine(vector, w) > 0.999
    assert fit(model, tokenizer(), pairs, 3, method="mean", at="response_last").provenance["masked"] == "3, 3"


@pytest.mark.parametrize("how", [{}, {"method": "mean"}, {"mode": "pos"}, {"centred": False}, {"at": "response_last"}])
@pytest.mark.parametrize("attribution", ["ig", "occlusion"])
def test_a_planted_direction_is_recovered(how, attribution):
    model, w = planted()
    vector = fit(model, tokenizer(), wordy(8), 3, attribution=attribution, sites=[0, 2], **how)
    assert cosine(vector, w) > 0.999
    assert cosine(vector, w, Site(0)) > 0.999


def test_swapped_pairs_give_the_opposite_vector():
    model, w = planted()
    pairs = wordy(3)
    back = [Pair(pair.prompt, pair.negative, pair.positive) for pair in pairs]
    for method in ("pca", "mean"):
        there, again = (fit(model, tokenizer(), given, 3, method=method, sites=[2], steps=4) for given in (pairs, back))
        torch.testing.assert_close(there.directions[Site(2)], -again.directions[Site(2)], atol=1e-5, rtol=0)
        assert cosine(again, w) < -0.999


def test_random_masks_do_not_find_it():
    model, w = planted()
    pairs, how = wordy(8), {"method": "mean", "sites": [2], "attribution": "occlusion"}
    found = [fit(model, tokenizer(), pairs, 3, top=top, **how) for top in ("rand", "signed")]
    along = [float(v.directions[Site(2)] @ w.float()) for v in found]
    assert abs(along[0]) < 0.5 * along[1]


def test_the_planted_vector_steers_and_keeps_every_norm():
    """Norms are those of tokens: over the width, not over the sequence."""
    model, _ = planted()
    vector, (pair,) = fit(model, tokenizer(), wordy(6), 3, sites=[1]), wordy(1, seed=9)
    ids = torch.tensor([tokenizer()(pair.prompt)["input_ids"]] * 2)
    yes, no = (tokenizer()(text)["input_ids"][0] for text in pair.options)

    def margin_and_norms(strength):
        with steering(model, vector, strength), recording(model, [1]) as found:
            logits = model(input_ids=ids).logits[:, -1]
        return logits[:, yes] - logits[:, no], found[Site(1)][0].norm(dim=-1), logits

    (plain, sizes, logits), (up, kept, _), (down, _, _) = (margin_and_norms(s) for s in (0.0, 0.5, -0.5))
    assert (down < plain).all()
    assert (plain < up).all()
    torch.testing.assert_close(kept, sizes, rtol=1e-5, atol=0)
    assert torch.equal(logits, model(input_ids=ids).logits[:, -1])  # strength 0


def test_a_vector_says_how_it_came_about():
    model, _ = planted()
    pairs = wordy(4)
    vector = fit(model, tokenizer(), pairs, 3, sites=[2], mode="pos", steps=3)
    about = vector.provenance
    assert (about["method"], about["mode"], about["at"], about["k"]) == ("grains pca", "pos", "prompt_last", "3")
    assert (about["attribution"], about["baseline"]) == ("ig", "prompt")
    assert float(about["gap"]) < 0.5
    every = [states(model, torch.tensor(tokenizer()(pair.prompt)["input_ids"]), Site(2)).norm(dim=1) for pair in pairs]
    assert vector.norms[Site(2)] == pytest.approx(float(torch.cat(every).median()), rel=1e-5)


def test_attributions_can_be_used_again():
    model, _ = planted()
    pairs = wordy(4)
    found = [attribute(model, tokenizer(), pair, "occlusion") for pair in pairs]
    again, there = (fit(model, tokenizer(), pairs, 3, attribution=a, sites=[2]) for a in (found, "occlusion"))
    assert torch.equal(again.directions[Site(2)], there.directions[Site(2)])
    with pytest.raises(ValueError, match="expected those of these pairs"):
        fit(model, tokenizer(), pairs[::-1], 3, attribution=found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "probe"}, "'pca' or 'mean'"),
        ({"mode": "neg"}, "'both' or 'pos'"),
        ({"at": "last"}, "prompt_last"),
        ({"top": "abs"}, "mode='pos'"),
        ({"sites": [7]}, "layer 7"),
        ({"attribution": "saliency"}, "expected one of"),
    ],
)
def test_bad_fits(given, message):
    model, _ = planted()
    with pytest.raises(ValueError, match=message):
        fit(model, tokenizer(), wordy(2), 2, **{"attribution": "occlusion", **given})


def test_too_few_rows():
    model, _ = planted()
    with pytest.raises(ValueError, match="no pairs"):
        fit(model, tokenizer(), [])
    with pytest.raises(ValueError, match=r"1 pairs have a token in I.*'pca' needs 2"):
        fit(model, tokenizer(), wordy(1), 2, attribution="occlusion")
    fit(model, tokenizer(), wordy(1), 2, attribution="occlusion", method="mean", sites=[0])
    plain = replace(wordy(1)[0], prompt="<s> the cat it")
    with pytest.raises(ValueError, match="0 pairs have a token in I"):
        fit(model, tokenizer(), [plain], 2, attribution=[scored_as(plain)], method="mean")


def scored_as(pair):
    """An attribution of a pair in which no token has a sign."""
    count = len(tokenizer()(pair.prompt)["input_ids"])
    return replace(scored((0.0,) * count), pair=pair)


class Processor:
    """For the tiny LLaVA: a picture is 4 tokens, and its pixels are given as they are."""

    tokenizer = tokenizer()

    def __call__(self, text, images, return_tensors, **special):
        batch = self.tokenizer(text[0].replace("<image>", "<image>" * 4), return_tensors="pt")
        return {"input_ids": batch["input_ids"], "pixel_values": images[0][None]}


def pictured():
    pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return vision_model("llava", torch.float64), Processor(), Pair("<image>Is it a cat?", " Yes it is", " No", pixels)


def test_image_tokens_are_attributed_and_masked():
    model, processor, pair = pictured()
    found = attribute(model, processor, pair, steps=9, tolerance=0.0)
    assert found.image.nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert found.scores[:4].abs().min() > 0
    other = replace(pair, image=pair.image.flip(0) - 0.5)
    assert (attribute(model, processor, other, steps=9, tolerance=0.0).scores - found.scores)[:4].abs().max() > 1e-3
    tokens = chosen(found, (2, 2))
    moved = contrast(model, processor, pair, tokens, [2], "response_last")
    assert moved.positive[Site(2)].shape == (2, 32)
    assert moved.positive[Site(2)].norm() > 1e-3


def test_occluded_image_tokens_are_zero_rows():
    model, processor, pair = pictured()
    found = attribute(model, processor, pair, "occlusion")
    margin = preference(model, processor, pair)
    blank = margin.embeds.clone()
    blank[2] = 0
    drop = margin(margin.embeds[None]) - margin(blank[None])
    assert float(found.scores[2]) == pytest.approx(float(drop), abs=1e-6)


def test_vectors_of_a_vision_language_model():
    model, processor, pair = pictured()
    pairs = [pair, replace(pair, image=pair.image.flip(1)), replace(pair, image=pair.image.flip(2) * 0.5)]
    vector = fit(model, processor, pairs, (3, 2), attribution="occlusion", method="mean", mode="pos")
    assert vector.sites == (Site(0), Site(1), Site(2))
    assert all(v.norm() > 0 for v in vector.directions.values())
