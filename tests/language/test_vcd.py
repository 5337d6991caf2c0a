"""VCD: beside a picture that is not noised it is plain decoding, beside one that is it is its formula."""

import pytest
import torch
from equivalence import Way, answered, forward, generate, greedy, inputs
from tiny_models import SPECIAL, tokenizer
from tiny_vlms import PICTURES, VISION

from steer.language import decode
from steer.language.decode.vcd import noised, vcd


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def seen(name, step=None):
    """The pictures of `inputs`, noised."""
    found = {key: inputs(name)[key] for key in PICTURES if key in inputs(name)}
    return found if step is None else {**found, "pixel_values": noised(found["pixel_values"], step, generator())}


def said(name, decoder, **settings):
    out = generate(name, inputs(name), custom_generate=decoder, **{"do_sample": False, **settings})
    return out.sequences[:, inputs(name)["input_ids"].shape[1] :]


@pytest.mark.parametrize("name", VISION)
def test_without_noise_it_is_plain_decoding(name):
    """(1 + beta) log p - beta log p = log p: so the second half and its cache keep step with the first."""
    assert torch.equal(said(name, vcd(seen(name), beta=3.0)), greedy(name, inputs(name))[0])


@pytest.mark.parametrize("name", VISION)
def test_it_is_its_formula(name):
    """Each token is the likeliest of the contrast of two plain passes over the same text."""
    tokens = said(name, vcd(seen(name, 800), beta=2.0))
    start = inputs(name)["input_ids"].shape[1] - 1
    both = (inputs(name), inputs(name) | seen(name, 800))
    own, other = (forward(name, answered(name, given, tokens))[:, start:-1].log_softmax(-1) for given in both)
    plausible = own.exp() >= 0.1 * own.exp().amax(-1, keepdim=True)
    scores = torch.where(plausible, 3 * own - 2 * other, -torch.inf)
    scores[..., : len(SPECIAL)] = -torch.inf  # which `generate` of these tests leaves out
    assert torch.equal(scores.argmax(-1), tokens)


def test_the_ends_of_its_dials():
    plain, noise = greedy("llava", inputs("llava"))[0], seen("llava", 900)
    assert torch.equal(said("llava", vcd(noise, beta=0.0)), plain)
    assert torch.equal(said("llava", vcd(noise, beta=9.0, alpha=1.0)), plain)
    assert not torch.equal(said("llava", vcd(noise, beta=9.0, alpha=0.0)), plain)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "paligemma2"])
def test_steering_acts_on_both_halves(name):
    with Way().on(name):
        assert torch.equal(said(name, vcd(seen(name), beta=3.0)), greedy(name, inputs(name))[0])


def test_a_search_takes_it_as_its_source():
    """Sampled candidates on an unnoised picture are those of plain sampling."""

    def reward(texts, prompts):
        return torch.tensor([float(len(text)) for text in texts])

    found = []
    for source in (decode.plain, vcd(seen("qwen3_vl"), beta=2.0, alpha=0.0)):
        search = decode.best_of_n(reward, tokenizer(), n=3, source=source)
        found.append(said("qwen3_vl", search, do_sample=True, generator=generator(), top_k=0))
    assert torch.equal(*found)


def test_noise_is_the_published_diffusion():
    """From hardly any to nearly nothing else, variance 1 kept, and half-way as much as the schedule says."""
    pixels = torch.ones(1, 3, 300, 300)
    torch.testing.assert_close(noised(pixels, 0, generator()), pixels, atol=0.05, rtol=0)
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000)) * (0.5e-2 - 1e-5) + 1e-5
    kept = torch.cumprod(1 - betas, 0).sqrt()
    for step in (500, 999):
        found = noised(pixels, step, generator())
        assert found.mean().item() == pytest.approx(kept[step].item(), abs=0.01)
        assert found.std().item() == pytest.approx((1 - kept[step].item() ** 2) ** 0.5, rel=0.01)


def test_refusals():
    with pytest.raises(ValueError, match="step 1000: expected 0 to 999"):
        noised(torch.ones(1, 3, 2, 2), 1000, generator())
    for wrong in ({"beta": -1.0}, {"alpha": 1.5}):
        with pytest.raises(ValueError, match="expected beta >= 0"):
            vcd(seen("llava"), **wrong)
    with pytest.raises(ValueError, match="expected pixel_values"):
        vcd({"image_grid_thw": torch.ones(1, 3)})
