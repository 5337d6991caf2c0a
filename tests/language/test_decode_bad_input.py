"""Guided decoding says what came, what was expected, and the cure."""

import pytest
import torch
from decoding import generate, odd, prompts
from tiny_models import made, text_model, tokenizer, tokens
from transformers import LlamaForCausalLM

from steer.language import decode
from steer.plan import narrow

TOK = tokenizer()


def search(**kwargs):
    return decode.blockwise(odd, TOK, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n": 0}, "n = 0: expected at least one candidate"),
        ({"block": 0}, "block = 0: expected at least one token"),
        ({"pick": "best"}, "unknown pick 'best'"),
        ({"potential": "max"}, "unknown potential 'max'"),
        ({"source": text_model("llama")}, "expected a decoder that does not search"),
        ({"source": decode.best_of_n(odd, TOK)}, "expected a decoder that does not search"),
    ],
)
def test_settings_of_a_search(kwargs, message):
    with pytest.raises(ValueError, match=message):
        search(**kwargs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: decode.contrastive(text_model("llama"), beta=-1.0), "expected beta >= 0"),
        (lambda: decode.contrastive(text_model("llama"), alpha=2.0), "0 <= alpha <= 1"),
        (lambda: decode.dola("middle"), "expected 'low', 'high' or numbers"),
        (lambda: decode.dola(()), "expected at least one layer"),
        (lambda: decode.dola(alpha=-0.1), "0 <= alpha <= 1"),
        (lambda: decode.pasta(torch.ones(1, 9).bool(), alpha=0.0), "expected a factor in"),
        (lambda: decode.hidden_state_optimization(window=1), "expected window >= 2"),
        (lambda: decode.hidden_state_optimization(steps=-1), "steps >= 0"),
        (lambda: decode.hidden_state_optimization(lr=0.0), "lr > 0"),
        (lambda: decode.hidden_state_optimization(clip=0.0), "clip > 0"),
        (lambda: decode.value_guided(odd, TOK, k=0), "k = 0"),
        (lambda: decode.value_guided(odd, TOK, source=decode.best_of_n(odd, TOK)), "that does not search"),
    ],
)
def test_settings_of_a_source(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"do_sample": False}, "4 candidates would be equal: expected do_sample=True"),
        ({"num_beams": 2}, "num_beams=2"),
        ({"guidance_scale": 2.0, "negative_prompt_ids": torch.ones(2, 3).long()}, "use source=cfg"),
        ({"cache_implementation": "static"}, "StaticCache .* expected a DynamicCache"),
        ({"use_cache": False}, "expected use_cache=True"),
    ],
)
def test_settings_of_generate(kwargs, message):
    model, inputs = prompts("llama")
    with pytest.raises(ValueError, match=message):
        generate(model, inputs, search(), **kwargs)


def test_a_quantised_cache_is_refused():
    from transformers import cache_utils

    model, inputs = prompts("llama")

    class Rounded(cache_utils.DynamicLayer):
        """Keeps rows where no gather reaches, as layers of a quantised cache do."""

    cache = cache_utils.DynamicCache(config=model.config)
    cache.layers = [Rounded() for _ in cache.layers]
    with pytest.raises(ValueError, match=r"\['Rounded'\] cannot copy and drop rows"):
        generate(model, inputs, search(), cache=cache)


@pytest.mark.parametrize("decoder", [search(), decode.plain, decode.cfg()], ids=["blockwise", "plain", "cfg"])
def test_empty_prompts(decoder):
    model = text_model("llama")
    ids, mask = torch.full((2, 4), 20), torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"prompts \[1\] of 2 hold no token"):
        generate(model, {"input_ids": ids, "attention_mask": mask}, decoder)


def test_other_things_than_a_tokenizer_a_reward_and_a_generator():
    model, inputs = prompts("llama")
    with pytest.raises(ValueError, match="expected the model's tokenizer"):
        generate(model, inputs, decode.best_of_n(odd, "smollm2"))
    with pytest.raises(ValueError, match=r"returned shape \(2, 1\); expected one score a text"):
        generate(model, inputs, decode.best_of_n(lambda texts, prompts: torch.zeros(2, 1), TOK, n=1))
    with pytest.raises(ValueError, match="3 generators for 2 prompts"):
        generate(model, inputs, search(), seed=[1, 2, 3])


def test_a_plan_that_does_not_fit():
    model, inputs = prompts("llama")
    with pytest.raises(ValueError, match="begin with 8 particles, but the run has n = 4"):
        generate(model, inputs, search(pick=narrow((8, 2))))
    with pytest.raises(ValueError, match="the last is never reached"):
        generate(model, inputs, search(block=6, pick=narrow((4, 3, 2, 1))))


def test_models_and_prompts_that_do_not_fit():
    model, inputs = prompts("llama")
    config = type(model.config)(**{**model.config.to_dict(), "vocab_size": 64})
    with pytest.raises(ValueError, match="the amateur has 64 tokens, the model 128"):
        generate(model, inputs, decode.contrastive(made(LlamaForCausalLM, config, torch.float32)))
    with pytest.raises(ValueError, match="3 negative prompts for 2 prompts"):
        generate(model, inputs, decode.cfg(tokens(3, 4)))
    with pytest.raises(ValueError, match="none empty"):
        generate(model, inputs, decode.cfg({"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.zeros(1, 2)}))
    with pytest.raises(ValueError, match="expected one or more before the last block"):
        generate(model, inputs, decode.dola((0, 2)))
    with pytest.raises(ValueError, match="layer 7"):
        generate(model, inputs, decode.dola((7,)))
    with pytest.raises(ValueError, match=r"marked is torch.bool \(2, 3\); expected bool \(2, 9\)"):
        generate(model, inputs, decode.pasta(torch.ones(2, 3).bool()))
    with pytest.raises(ValueError, match=r"heads \[9\] of block 0: the model has 3 blocks of 4 heads"):
        generate(model, inputs, decode.pasta(torch.ones(2, 9).bool(), {0: [9]}))


def test_pictures_where_only_text_will_do():
    from tiny_vlms import vision_inputs, vision_model

    model, inputs = vision_model("llava"), vision_inputs("llava")
    for decoder in (decode.contrastive(model), decode.cfg(), decode.hidden_state_optimization(window=4)):
        with pytest.raises(ValueError, match=r"takes prompts of text alone, and was given"):
            model.generate(**inputs, custom_generate=decoder, max_new_tokens=3, do_sample=True)
