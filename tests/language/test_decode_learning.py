"""A cache that learns: its gradient, its steps, and a text that is read window by window."""

import pytest
import torch
from decoding import FAMILIES, prompts
from tiny_models import text_model, tokens

from steer.language import decode
from steer.language.decode.learn import Window, nll, read, streamed_nll


def loss(window, states):
    return window.loss(window.read(states)[0])


def window(model, inputs, split=5):
    """A window behind `split` columns, with the cache of what is before."""
    mask = inputs["attention_mask"]
    places = (mask.cumsum(1) - 1).clamp_min(0)
    given = {"attention_mask": mask, "position_ids": places}
    out = model(
        input_ids=inputs["input_ids"][:, :split],
        attention_mask=mask[:, :split],
        position_ids=places[:, :split],
        use_cache=True,
    )
    cache = out.cache if "cache" in out else out.past_key_values
    return Window(model, cache, inputs["input_ids"], split, given)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_in_the_cache_lowers_the_loss_of_the_window(name):
    """By about |gradient| along it; a step along a random direction of the same size does next to nothing."""
    model, inputs = prompts(name, length=12)
    seen = window(model, inputs, split=7)
    begin = read(seen.cache)
    before = loss(seen, begin)
    after = [loss(seen, seen.optimised(decode.hidden_state_optimization(window=5, steps=k, lr=0.01))) for k in (1, 3)]
    assert (after[0] < before - 1e-3).all()
    assert (after[1] < after[0]).all()
    generator = torch.Generator().manual_seed(0)
    moved = seen.optimised(decode.hidden_state_optimization(window=5, steps=1, lr=0.01))
    noise = [torch.sign(torch.randn(s.shape, generator=generator)) * (m - s).abs() for s, m in zip(begin, moved)]
    random = loss(seen, [s + n for s, n in zip(begin, noise)])
    assert ((random - before).abs() < 0.5 * (before - after[0])).all()


def test_the_gradient_in_the_cache_is_that_of_finite_differences():
    model, inputs = text_model("llama", torch.float64), tokens(2, 9, padded=2)
    seen = window(model, inputs)
    begin = read(seen.cache)
    gradient = seen.gradient(begin)[0]
    generator = torch.Generator().manual_seed(0)
    way = [torch.randn(s.shape, generator=generator, dtype=s.dtype) for s in begin]
    up, down = (loss(seen, [s + h * w for s, w in zip(begin, way)]).sum() for h in (1e-3, -1e-3))
    along = sum((g * w).sum() for g, w in zip(gradient, way))
    torch.testing.assert_close((up - down) / 2e-3, along, rtol=1e-3, atol=1e-6)


def test_states_are_clipped():
    model, inputs = prompts("llama")
    seen = window(model, inputs)
    begin = read(seen.cache)
    moved = seen.optimised(decode.hidden_state_optimization(window=4, lr=100.0, clip=0.05))
    real = inputs["attention_mask"][:, None, :5, None]
    for s, m in zip(begin, moved):
        size, most = ((x * real).flatten(1).norm(dim=1) for x in (m - s, s))
        torch.testing.assert_close(size, 0.05 * most)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_learns_too(dtype):
    """Moments are kept in float32: the squares of small gradients are none in half precision."""
    model, inputs = text_model("llama", dtype), tokens(2, 12, padded=3)
    seen = window(model, inputs, split=7)
    begin, moved = (
        read(seen.cache),
        seen.optimised(decode.hidden_state_optimization(window=5, steps=3, lr=0.05, clip=1.0)),
    )
    assert all(m.isfinite().all() for m in moved)
    assert {s.dtype for s in begin} == {dtype}
    assert (loss(seen, moved) < loss(seen, begin) - 0.01).all()


def learning(**kwargs):
    return decode.hidden_state_optimization(**{"window": 5, "lr": 0.02, "clip": 1.0, **kwargs})


def read_at_once(model, ids, window):
    """Mean NLL of each window, of one pass over the whole text."""
    each = nll(model(input_ids=ids).logits[:, :-1], ids[:, 1:])
    each = torch.cat([torch.full_like(each[:, :1], torch.nan), each], 1)
    return torch.stack([part.nanmean(1) for part in each.split(window, 1)], 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_steps_windows_are_those_of_one_pass(name):
    """Also under a window of 8, where the cache slides; the last window is shorter."""
    model, ids = text_model(name), tokens(2, 23)["input_ids"]
    torch.testing.assert_close(streamed_nll(model, ids, learning(steps=0)), read_at_once(model, ids, 5))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_token_is_learnt_from_before_it_is_scored(name):
    """The first two windows are as without learning, and a window's score does not depend on what comes after it."""
    model, ids = text_model(name), tokens(2, 23)["input_ids"]
    plain, learnt = read_at_once(model, ids, 5), streamed_nll(model, ids, learning())
    torch.testing.assert_close(learnt[:, :2], plain[:, :2])
    assert ((learnt - plain)[:, 2:].abs() > 1e-4).all()
    torch.testing.assert_close(streamed_nll(model, ids[:, :15], learning()), learnt[:, :3])
    torch.testing.assert_close(streamed_nll(model, ids[1:], learning()), learnt[1:])


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_a_text_that_repeats_is_learnt(name):
    """Later windows of a text that says one thing over and over become likelier, and random steps do not do that."""
    model, ids = text_model(name), tokens(4, 6, seed=3)["input_ids"].repeat(1, 12)
    how = learning(window=6, steps=2, lr=0.05)
    plain, learnt = (streamed_nll(model, ids, h)[:, 6:].mean() for h in (learning(window=6, steps=0), how))
    blind = streamed_nll(model, ids, how, torch.Generator().manual_seed(0))[:, 6:].mean()
    assert learnt < plain - 0.3
    assert (blind - plain).abs() < (plain - learnt) / 2


def test_bad_ids():
    with pytest.raises(ValueError, match="at least two columns"):
        streamed_nll(text_model("llama"), torch.ones(1, 1).long(), learning())
