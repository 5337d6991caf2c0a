"""Our own loop over a pipeline's network agrees with the pipeline."""

import pytest
import tiny
import torch
from solver_cases import CASES, brightness, close

from steer.diffusion.controllers import code
from steer.diffusion.loop import finished, sample
from steer.diffusion.pipelines import Steered, denoiser_of
from steer.diffusion.solve import ddim, dpmpp_2m, heun
from steer.diffusion.state import Level

ASK = {"guidance_scale": 3.0, "num_inference_steps": 6}
PROMPTS = ["a cat", "dog"]


def both(name, solver, prompt=PROMPTS):
    """(the pipeline's latents, our loop's) for the same noise."""
    case = CASES[name]
    theirs = case.run(case.pipe(), prompt)
    d = denoiser_of(case.pipe(), prompt, generator=tiny.generator(), **ASK)
    g = tiny.generator()
    torch.randn(d.x.shape, generator=g)  # the pipeline drew its first noise here, and d.x is that
    ours = finished(sample(d, d.shape, d.schedule, cond=d.cond, prompts=d.prompts, x=d.x, solver=solver, generator=g))
    return theirs, ours


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("ddim-eta", ddim(1.0)),
        ("ddim", ddim(0.0)),
        ("ddpm", ddim(1.0)),
        ("euler-a", ddim(1.0)),
        ("euler", ddim(0.0)),
        ("heun", heun()),
        ("dpm2m", dpmpp_2m()),
    ],
)
@pytest.mark.parametrize("prompt", ["a cat", PROMPTS], ids=["one", "two"])
def test_both_drivers_agree(name, solver, prompt):
    theirs, ours = both(name, solver, prompt)
    assert close(ours.x, theirs, 1e-4)
    assert ours.run.prompts == (("a cat",) if isinstance(prompt, str) else tuple(PROMPTS))


def test_the_captured_decoder_is_the_pipelines():
    case = CASES["ddim"]
    pictures = case.run(case.pipe(), output_type="pt")
    d = denoiser_of(case.pipe(), "a cat", **ASK)
    assert torch.equal(d.decode(case.run(case.pipe())), pictures)


@torch.no_grad()
def test_a_search_in_both_drivers_chooses_alike():
    case = CASES["ddim-eta"]
    search = code(brightness, 2, common_start=False)
    theirs = Steered(case.pipe(), search)(
        "a cat", n=1, generator=tiny.generator(), output_type="latent", eta=1.0, **ASK
    )
    d = denoiser_of(case.pipe(), "a cat", generator=tiny.generator(), **ASK)
    g = tiny.generator()
    torch.randn(d.x.shape, generator=g)
    run = sample(d, d.shape, d.schedule, search, cond=d.cond, prompts=d.prompts, x=d.x, generator=g, decode=d.decode)
    assert torch.allclose(finished(run).trace[-1].scores, theirs.rewards[:, None], atol=1e-5)


def test_capture_leaves_the_pipeline_and_the_generator_alone():
    case = CASES["euler-a"]
    pipe, g = case.pipe(), tiny.generator()
    plain = case.run(pipe)
    names = [sorted(vars(part)) for part in (pipe, pipe.unet, pipe.scheduler)]
    state, everywhere = g.get_state(), torch.get_rng_state()
    denoiser_of(pipe, "a cat", generator=g, **ASK)
    denoiser_of(pipe, "a cat", **ASK)
    assert torch.equal(g.get_state(), state)
    assert torch.equal(torch.get_rng_state(), everywhere)
    assert [sorted(vars(part)) for part in (pipe, pipe.unet, pipe.scheduler)] == names
    assert torch.equal(case.run(pipe), plain)


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_gradients_through_guidance_agree_with_finite_differences(name):
    pipe = CASES[name].pipe()
    pipe.unet.requires_grad_(False).double()
    pipe.text_encoder.double()
    d = denoiser_of(pipe, "a cat", generator=tiny.generator(), **ASK)
    level, g = d.schedule[2], tiny.generator()
    x, way = torch.randn(2, 1, *d.shape, generator=g, dtype=torch.float64)

    def loss(x):
        return d(x, level, d.cond).square().mean()

    x.requires_grad_()
    (slope,) = torch.autograd.grad(loss(x), x)
    small = 1e-4
    with torch.no_grad():
        finite = (loss(x + small * way) - loss(x - small * way)) / (2 * small)
    assert (slope * way).sum().item() == pytest.approx(finite.item(), rel=1e-6)


def test_conditioning_is_a_tree_with_one_entry_a_prompt():
    d = denoiser_of(CASES["ddim"].pipe(), PROMPTS, num_images_per_prompt=2, **ASK)
    assert {name: tuple(leaf.shape) for name, leaf in d.cond.items()} == {"encoder_hidden_states": (4, 2, 16, 32)}
    assert d.prompts == ("a cat", "a cat", "dog", "dog")
    assert d.x.shape == (4, 4, 8, 8)
    assert isinstance(d.schedule[0], Level)
    lone = denoiser_of(CASES["ddim"].pipe(), "a cat", **{**ASK, "guidance_scale": 1.0})
    assert lone.cond["encoder_hidden_states"].shape == (1, 1, 16, 32)


@torch.no_grad()
def test_the_branches_of_guidance_can_be_asked_alone():
    d = denoiser_of(CASES["ddim"].pipe(), PROMPTS, generator=tiny.generator(), **ASK)
    free, asked = (d(d.x, d.schedule[0], {k: v[:, [block]] for k, v in d.cond.items()}) for block in (0, 1))
    assert not close(free, asked)
    assert close(free + ASK["guidance_scale"] * (asked - free), d(d.x, d.schedule[0], d.cond))
