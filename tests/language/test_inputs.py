"""A decoder that is run again on what it was given: exact, for copies, for columns, with gradients."""

import pytest
import torch
from equivalence import Way, answered, heard
from tiny_models import TEXT, text_model, tokens
from tiny_vlms import VISION, row_of, vision_inputs, vision_model

from steer.language.inputs import captured, head, replay
from steer.language.tower import tower

NAIVELY_WRONG = {"qwen2_5_vl", "qwen3_vl", "paligemma", "paligemma2", "gemma3"}


def case(name: str, rows: int = 2, padded: int = 3, dtype: torch.dtype = torch.float32):
    if name in TEXT:
        return text_model(name, dtype), tokens(rows, 12, padded=padded)
    inputs = vision_inputs(name, rows, words=9, padded=padded)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    return vision_model(name, dtype), inputs


@torch.no_grad()
def logits(model, inputs, **more):
    return model(**inputs, use_cache=False, **more).logits


@pytest.mark.parametrize("name", [*TEXT, *VISION])
def test_replay_is_exact(name):
    model, inputs = case(name)
    merged = captured(model, **inputs)
    with torch.no_grad():
        assert torch.equal(replay(model, merged), logits(model, inputs))
    assert merged.image.sum() == (0 if name in TEXT else 8)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "qwen3_vl", "gemma3"])
def test_replay_is_steered(name):
    model, inputs = case(name)
    merged, plain = captured(model, **inputs), logits(model, inputs)
    with Way().on(name, strength=[0.6, 0.2]), torch.no_grad():
        steered = logits(model, inputs)
        assert torch.equal(replay(model, merged), steered)
        both = replay(model, merged, merged.embeds.repeat_interleave(2, 0))
    torch.testing.assert_close(both, steered.repeat_interleave(2, 0), atol=1e-4, rtol=0)
    heard(steered, plain)


@pytest.mark.parametrize("name", VISION)
def test_the_naive_route_is_wrong_where_it_is_known_to_be(name):
    """A prompt and a response as embeddings alone, without what else the decoder is given: what `replay` prevents."""
    model, inputs = case(name, rows=1, padded=0)
    inputs = answered(name, inputs, inputs["input_ids"][:, -4:])
    wanted, merged = logits(model, inputs), captured(model, **inputs)
    apart = (logits(model, {"inputs_embeds": merged.embeds}) - wanted).abs().max() / wanted.std()
    assert apart > 0.01 if name in NAIVELY_WRONG else apart < 1e-5


@pytest.mark.parametrize("name", [*VISION, "gpt2", "gemma2"])
def test_copies_are_as_single(name):
    """Rows of unlike padding, pictures and embeddings, two copies of each: every copy as its row alone."""
    model, inputs = case(name)
    if name in TEXT:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    merged = captured(model, **inputs)
    change = 0.3 * torch.randn(4, *merged.embeds.shape[1:], generator=torch.Generator().manual_seed(0))
    embeds = merged.embeds.repeat_interleave(2, 0) + change
    with torch.no_grad():
        together = replay(model, merged, embeds)
        for row in range(2):
            real = inputs["attention_mask"][row].bool()
            alone = captured(model, **row_of(inputs, row))
            for copy in (2 * row, 2 * row + 1):
                single = replay(model, alone, embeds[copy : copy + 1, real])
                torch.testing.assert_close(together[copy, real], single[0], atol=2e-5 * single.std().item(), rtol=0)


@pytest.mark.parametrize("name", [*VISION, "llama", "gpt2", "cohere"])
def test_gradients_reach_every_token(name):
    """The slope along a random direction is what the logits do there, and no image or word is left out."""
    model, inputs = case(name, rows=1, padded=0, dtype=torch.float64)
    merged = captured(model, **inputs)
    embeds = merged.embeds.clone().requires_grad_()
    torch.manual_seed(0)
    values = torch.randn(model.config.get_text_config().vocab_size, dtype=embeds.dtype)
    (replay(model, merged, embeds, [-1]) @ values).sum().backward()
    assert (embeds.grad[0].abs().sum(-1) > 0).all()
    step, size = torch.randn_like(embeds.detach()), 3e-4  # norms compute in float32 whatever the rest does
    with torch.no_grad():
        ends = [(replay(model, merged, embeds + sign * size * step, [-1]) @ values).sum() for sign in (1, -1)]
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * size), (embeds.grad * step).sum(), rtol=5e-3, atol=5e-2)


@pytest.mark.parametrize("name", ["paligemma2", "gemma2", "cohere", "granite"])
def test_columns(name):
    model, inputs = case(name)
    merged = captured(model, **inputs)
    mask = torch.rand(merged.image.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        every = replay(model, merged)
        assert torch.equal(replay(model, merged, at=[3, -1]), every[:, [3, -1]])
        assert torch.equal(replay(model, merged, at=torch.tensor([0, 5])), every[:, [0, 5]])
        torch.testing.assert_close(replay(model, merged, at=mask), every[mask])


@pytest.mark.parametrize("name", VISION)
def test_answers_are_forced_as_they_are_generated(name):
    """Types, masks and positions of a response behind a prompt are those that `generate` gives it."""
    model, inputs = case(name)
    said = model.generate(
        **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    prompt = inputs["input_ids"].shape[1]
    forced = replay(model, captured(model, **answered(name, inputs, said.sequences[:, prompt:])))
    wanted = torch.stack(said.logits, 1)
    torch.testing.assert_close(forced[:, prompt - 1 : -1], wanted, atol=2e-5 * wanted.std().item(), rtol=0)


def test_refusals():
    model, inputs = case("llama")
    merged = captured(model, **inputs)
    with pytest.raises(ValueError, match="expected input_ids"):
        captured(model, inputs_embeds=merged.embeds)
    for wrong in (merged.embeds[:, 1:], merged.embeds[..., 1:], merged.embeds[:1].repeat(3, 1, 1), merged.embeds[:0]):
        with pytest.raises(ValueError, match="a multiple of its 2 rows"):
            replay(model, merged, wrong)


def test_the_model_is_left_as_it_was():
    model = text_model("llama")
    decoder = tower(model).decoder
    with pytest.raises(IndexError):
        captured(model, input_ids=torch.full((1, 3), 10**6))
    with pytest.raises(RuntimeError):
        head(model, torch.zeros(1, 2, 5))
    assert "forward" not in decoder.__dict__
    assert not decoder._forward_pre_hooks
