"""The border between predictions and x0, in every scaling, and the toy denoisers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import gaussian, three_modes

from steer.diffusion.denoise import KINDS, from_x0, to_x0
from steer.diffusion.state import Level

angle = st.floats(0.01, math.pi / 2 - 0.01)
SCALINGS = {
    "variance preserving": lambda a: Level(math.cos(a), math.sin(a)),
    "variance exploding": lambda a: Level(1.0, math.tan(a)),
    "flow": lambda a: Level(1 - 2 * a / math.pi, 2 * a / math.pi),
}


def noised(level: Level) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x0, eps = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x0, eps, level.alpha * x0 + level.sigma * eps


@pytest.mark.parametrize("scaling", SCALINGS)
@given(a=angle)
def test_definitions(scaling, a):
    level = SCALINGS[scaling](a)
    x0, eps, x = noised(level)
    predictions = {
        "epsilon": eps,
        "v_prediction": level.alpha * eps - level.sigma * x0,
        "flow_prediction": eps - x0,
        "sample": x0,
    }
    assert set(predictions) == set(KINDS)
    for kind, prediction in predictions.items():
        assert torch.allclose(to_x0(prediction, x, level, kind), x0, atol=1e-9)
        assert torch.allclose(from_x0(x0, x, level, kind), prediction, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(a=angle)
def test_inverse(kind, a):
    for level in (scaling(a) for scaling in SCALINGS.values()):
        prediction, x, _ = noised(level)
        assert torch.allclose(from_x0(to_x0(prediction, x, level, kind), x, level, kind), prediction, atol=1e-6)


def test_zero_terminal_signal():
    """At alpha = 0 the velocity determines x0 and the noise does not."""
    level = Level(0.0, 1.0)
    x0, eps, _ = noised(level)
    assert torch.equal(to_x0(-x0, eps, level, "v_prediction"), x0)
    assert torch.allclose(to_x0(eps - x0, eps, level, "flow_prediction"), x0)
    with pytest.raises(ValueError, match="v-prediction"):
        to_x0(eps, eps, level, "epsilon")


def test_unknown_kinds_are_refused():
    for border in (to_x0, from_x0):
        with pytest.raises(ValueError, match=r"'velocity'.*epsilon"):
            border(torch.ones(1), torch.ones(1), Level(0.5, 0.5), "velocity")


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("a", [0.2, 0.8, 1.4])
def test_a_mixture_is_its_own_denoiser(scaling, a):
    """Tweedie: E[x0 | x] = (x + sigma^2 grad log p(x)) / alpha."""
    level = SCALINGS[scaling](a)
    x = (5 + 3 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0))).requires_grad_()
    (score,) = torch.autograd.grad(three_modes().log_prob(x, level).sum(), x)
    assert torch.allclose(three_modes()(x, level), (x + level.sigma**2 * score) / level.alpha, atol=2e-4)


def test_a_mixture_without_signal_or_noise():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(three_modes()(x, Level(0.0, 1.0)), torch.tensor([5.0, 6.0]).expand(5, 2))
    assert torch.allclose(three_modes()(x, Level(1.0, 0.0)), x)


def test_samples_and_density_of_a_mixture_agree():
    g = torch.Generator().manual_seed(0)
    x = three_modes().sample(50_000, g)
    assert torch.allclose(x.mean(0), torch.tensor([5.0, 6.0]), atol=0.05)
    assert torch.allclose(x.var(0), torch.tensor([7.0, 9.0]), atol=0.1)
    grid = torch.linspace(-6, 6, 2001)[:, None]
    assert torch.trapezoid(gaussian(0.5, 0.3).log_prob(grid).exp(), grid[:, 0]) == pytest.approx(1, abs=1e-4)
