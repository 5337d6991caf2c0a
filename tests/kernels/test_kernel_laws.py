"""The references of the steering ops are what steer computes without them, and errors name what came."""

from functools import partial

import pytest
import torch
from steer_kernels import operator
from steer_kernels.adain import adain
from steer_kernels.steer_add import steer_add
from steer_kernels.transition import Key, transition
from torch.testing import assert_close

from steer.diffusion.denoise import KINDS, to_x0
from steer.diffusion.solve import noise_scale
from steer.diffusion.solve import transition as step
from steer.diffusion.state import Level
from steer.language.edits import Add, kept, norm
from steer.language.passes import Tracker
from steer.language.steering import Push
from steer.transfer import statistics

draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
double = partial(draw, dtype=torch.float64)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_adain_is_that_of_the_statistics(alpha):
    x, y = draw(2, 3, 7, 5), draw(1, 3, 9, 5) * 2 + 1
    assert torch.equal(adain(x, y, alpha), statistics.adain(x, y, alpha, dim=-2))
    assert alpha > 0 or torch.equal(adain(x, y, alpha), x)


@pytest.mark.parametrize("shape", [(2, 3, 7, 4), (2, 2, 7, 5), (3, 7, 5), (2, 3, 0, 5)])
def test_adain_refuses_what_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"expected \(rows, heads, tokens, d\)"):
        adain(draw(2, 3, 7, 5), torch.zeros(shape))


LEVELS = {
    "diffusion": (Level(0.3, 0.91**0.5), Level(0.6, 0.8)),
    "flow": (Level(0.1, 0.9), Level(0.4, 0.6)),
    "exploding": (Level(1.0, 9.0), Level(1.0, 3.0)),
    "last": (Level(0.9, 0.1), Level(1.0, 0.0)),
}


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_transition_is_guidance_then_x0_then_the_step_of_the_solver(kind, levels, eta):
    x, conditional, unconditional, noise = double(4, 6, 3, 2)
    level, to = LEVELS[levels]
    guided = unconditional + 5 * (conditional - unconditional)
    expected = step(x, to_x0(guided, x, level, kind), level, to, noise_scale(level, to, eta), noise)
    dials = {"kind": kind, "unconditional": unconditional, "guidance": 5, "eta": eta}
    assert_close(transition(x, conditional, level, to, noise=noise, **dials), expected)
    index = torch.tensor([[1, 1, 0], [2, 0, 2]])
    rows = torch.tensor([1, 1, 0, 5, 3, 5])
    expected = step(x[rows], to_x0(guided, x, level, kind)[rows], level, to, noise_scale(level, to, eta), noise)
    assert_close(transition(x, conditional, level, to, noise=noise, ancestors=index, **dials), expected)


def test_noise_belongs_to_seed_step_and_particle():
    level, to = LEVELS["flow"]
    move = partial(transition, level=level, to=to, kind="flow_prediction", eta=1.0)
    x, v = draw(4, 5).expand(1, 4, 5)[0], draw(4, 5)
    whole = move(x, v, noise=Key(3, 2))
    assert torch.equal(move(x[2:], v[2:], noise=Key(3, 2), particles=torch.tensor([2, 3])), whole[2:])
    assert not torch.equal(move(x, v, noise=Key(4, 2)), whole)
    assert not torch.equal(move(x, v, noise=Key(3, 1)), whole)
    moved = move(torch.zeros(2, 3), torch.zeros(2, 3), noise=Key(0, 0), particles=torch.tensor([7, 7]))
    assert torch.equal(moved[0], moved[1])


def test_gradients_of_a_transition_flow_through_the_gather():
    level, to = LEVELS["diffusion"]
    x, p = double(4, 3).requires_grad_(), double(4, 3).requires_grad_()
    index, noise = torch.tensor([[1, 1], [0, 0]]), double(4, 3)
    move = partial(transition, level=level, to=to, eta=0.5, noise=noise, ancestors=index, unconditional=p.detach())
    assert torch.autograd.gradcheck(move, (x, p))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": torch.zeros(4, 2)}, r"prediction \(4, 2\)"),
        ({"eta": 1.0}, "eta = 1.0 and no noise"),
        ({"kind": "score"}, "kind 'score'"),
        ({"level": (0.0, 1.0)}, "alpha > 0 before"),
        ({"level": (1.0, 0.0)}, "sigma > 0 before"),
        ({"ancestors": torch.zeros(4, dtype=torch.int64)}, r"ancestors \(4,\)"),
        ({"particles": torch.zeros(3, dtype=torch.int64)}, r"particles \(3,\)"),
        ({"eta": 1.0, "noise": Key(-1, 0)}, "seed -1"),
    ],
)
def test_transition_refuses_what_it_cannot_do(change, message):
    given = {"x": torch.zeros(4, 3), "prediction": torch.zeros(4, 3), "level": (0.5, 0.8), "to": (0.8, 0.5)}
    with pytest.raises(ValueError, match=message):
        transition(**given | change)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_steer_add_is_the_edit_in_place(relative, keep):
    hidden, vector, dial = double(3, 4, 6), double(1, 6), torch.tensor([0.2, 0.0, -0.7], dtype=torch.float64)
    mask = torch.tensor([True, False, True, True])
    expected = Add(relative)(hidden, vector[0], dial[:, None, None])
    expected = kept(expected, norm(hidden)) if keep else expected
    expected = torch.where(mask[:, None] & (dial != 0)[:, None, None], expected, hidden)
    found = steer_add(hidden, vector, dial[:, None], mask=mask[None], relative=relative, keep_norm=keep)
    assert found is hidden
    assert_close(hidden, expected)


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = property(lambda self: True)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("mask", [True, torch.tensor([[True, False, True, True]])], ids=["all", "some"])
@pytest.mark.parametrize("rows", ["one vector", "a vector each"])
def test_steering_on_a_gpu_is_steering(monkeypatch, relative, mask, rows):
    monkeypatch.setattr(operator, "ENABLED", False)
    hidden, limit = double(3, 4, 6), torch.tensor(2.5) if relative else None
    direction, dial = double(6), 0.3
    if rows == "a vector each":
        direction, dial = double(3, 1, 6), torch.tensor([0.3, 0.0, -1.0])[:, None, None]
    push = Push(Tracker(None), lambda now, hidden: mask, Add(relative), direction, dial, True, limit, None)
    expected, calls = push(hidden), []
    monkeypatch.setattr(Push, "fused", lambda *args, fused=Push.fused: calls.append(1) or fused(*args))
    with torch.no_grad():
        found = push(hidden.clone().as_subclass(OnGPU))
    assert_close(found.as_subclass(torch.Tensor), expected)
    assert calls == [1]
    assert_close(push(hidden.clone().as_subclass(OnGPU)).as_subclass(torch.Tensor), expected)
    assert calls == [1], "a gradient may be wanted"


def test_several_vectors_add_up_and_sinks_are_spared():
    hidden, vectors = double(1, 2, 5), double(1, 2, 5)
    hidden[0, 0] *= 1e3
    before = hidden.clone()
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    size = before[0, 1].norm()
    steer_add(hidden, vectors, torch.tensor([0.5, -2.0]), keep_norm=False, limit=100.0)
    assert torch.equal(hidden[0, 0], before[0, 0])
    assert_close(hidden[0, 1], before[0, 1] + size * (0.5 * unit[0, 0] - 2 * unit[0, 1]))


def test_steer_add_refuses_what_does_not_fit():
    hidden, vectors, dial = draw(2, 3, 4), draw(1, 4), torch.ones(1)
    for bad in ((hidden[0], vectors, dial), (hidden, draw(1, 5), dial), (hidden, vectors, torch.ones(2))):
        with pytest.raises(ValueError, match=r"expected \(rows, tokens, d\)"):
            steer_add(*bad)
    with pytest.raises(ValueError, match=r"mask .* expected bool"):
        steer_add(hidden, vectors, dial, mask=torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="no_grad"):
        steer_add(hidden.clone().requires_grad_() * 1, vectors, dial)
