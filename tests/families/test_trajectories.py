"""Laws of recorded and inverted trajectories, on every family that starts from noise."""

import pytest
import tiny
import tiny_families
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from test_attention import FAMILIES

import steer
from steer.diffusion.denoise import GaussianMixture
from steer.diffusion.schedule import flow, karras, vp
from steer.diffusion.solve import ddim, transition
from steer.diffusion.trajectory import upwards

TAME = ("sd", "sd35", "flux", "sana")
SIZES = {**tiny_families.SIZE, "sd35": tiny_families.SIZE["sd3"]}
CASES = {**FAMILIES, "sana": (tiny_families.sana, FlowMatchEulerDiscreteScheduler)}


def made(family):
    build, scheduler = CASES[family]
    return tiny_families.made(build, scheduler()), SIZES.get(family, {})


def pictures(pipe, count=1, side=None):
    side = side or (32 if "Sana" in type(pipe).__name__ else 16)
    return torch.rand(count, 3, side, side, generator=tiny.generator(2))


@pytest.mark.parametrize("family", CASES)
def test_a_recorded_run_is_the_plain_run(family):
    pipe, size = made(family)
    options = {"num_inference_steps": 3, **size}
    kept = steer.record(pipe, "a cat", generator=tiny.generator(), **options)
    plain = pipe("a cat", generator=tiny.generator(), output_type="latent", **options).images
    assert torch.equal(kept.latents, plain)
    assert kept.x.shape[0] == len(kept.levels) == 4
    assert kept.rows > 0
    for x, level in zip(kept.x, kept.levels, strict=True):
        assert torch.equal(kept.at(level), x)


@pytest.mark.parametrize("family", CASES)
def test_inverted_pictures_lead_back(family):
    """From clean latents up and down again; with fixed points it is exact wherever the random network is tame."""
    pipe, size = made(family)
    images, errors = pictures(pipe, 2), []
    for repeats in (0, 12):
        found = steer.invert(pipe, images, num_inference_steps=8, repeats=repeats, **size)
        assert found.rows == 2 * 8 * (1 + repeats)
        assert len(found.levels) == len(found.x) == 9
        denoiser = steer.denoiser_of(pipe, ["", ""], num_inference_steps=8, guidance_scale=1.0, **size)
        cell = {"solver": ddim(eta=0.0), "cond": denoiser.cond, "prompts": denoiser.prompts, "x": found.noise}
        back = steer.finished(steer.sample(denoiser, denoiser.shape, denoiser.schedule, **cell)).x
        errors.append(float((back - found.latents).abs().max()))
        assert steer.reconstruct(pipe, found, **size).shape == images.shape
    assert errors[1] < (1e-3 if family in TAME else errors[0])


@pytest.mark.parametrize(
    ("levels", "noise"),
    [(vp(40)[1:], True), (karras(40, 10.0, 0.1), True), (vp(40), False), (flow(40), False)],
    ids=["vp-noise", "ve-noise", "vp-velocity", "flow-velocity"],
)
def test_fixed_points_are_exact_on_a_toy(levels, noise):
    """The Gaussian mixture's own ODE, up and down, in float64; without repeats the error is that of a step."""
    toy = GaussianMixture(
        *(one.double() for one in (torch.tensor([[-1.0], [2.0]]), torch.full((2,), 0.5), torch.full((2,), 0.5)))
    )
    x, errors = torch.linspace(-2, 3, 11, dtype=torch.float64)[:, None], []
    for repeats in (0, 60):
        *_, top = upwards(toy, x, levels, repeats=repeats, noise=noise)
        for level, to in zip(levels, levels[1:]):
            top = transition(top, toy(top, level), level, to, 0.0, None)
        errors.append(float((top - x).abs().max()))
    assert errors[1] < 1e-6
    assert 1e-3 < errors[0] < 0.5


def test_the_encoder_is_the_decoders_counterpart():
    """Latents scaled as the pipelines scale them: what img2img encodes."""
    pipe = tiny_families.made(tiny.pipeline, DDIMScheduler())
    images = pictures(pipe)
    trajectory = steer.invert(pipe, images, num_inference_steps=2)
    expected = pipe.vae.encode(2 * images - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert torch.equal(trajectory.latents, expected)


def test_bad_input_is_refused():
    pipe = tiny_families.made(tiny.pipeline, DDIMScheduler())
    with pytest.raises(ValueError, match="repeats = -1"):
        steer.invert(pipe, pictures(pipe), repeats=-1)
    with pytest.raises(ValueError, match="one picture a prompt"):
        steer.invert(pipe, pictures(pipe, 2), ["a cat"], num_inference_steps=2)
    with pytest.raises(ValueError, match="one picture a prompt"):
        steer.invert(pipe, pictures(pipe, 1, side=32), num_inference_steps=2)
    kept = steer.record(pipe, "a cat", num_inference_steps=2)
    with pytest.raises(ValueError, match="num_inference_steps of the run"):
        kept.at(steer.Level(0.5, 0.5))
