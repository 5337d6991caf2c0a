"""Every search on a Stable Diffusion pipeline: the same counts as on the toys, and one particle is the plain call."""

import pytest
import tiny
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler

from steer import Steered, attach, beam, fk, funnel, halving, noise_search, paths, rollover, smc
from steer.diffusion.controllers import Adaptive, Demon

T = 6
ASK = {"num_inference_steps": T, "guidance_scale": 3.0, "output_type": "latent"}


def brightness(pictures, prompts):
    return pictures.mean((1, 2, 3))


def pipeline():
    return tiny.pipeline(DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False))


def steered(search, n: int, eta: float = 1.0, prompt="a cat"):
    return Steered(pipeline(), search, eta=eta)(prompt, n=n, generator=tiny.generator(), **ASK)


# search, n, eta -> denoiser rows a branch
SEARCHES = {
    "beam": (beam(brightness, 2, 2), 4, 1.0, 4 * T),
    "diverse": (beam(brightness, 2, 2, diversity=1.0), 4, 1.0, 4 * T),
    "funnel": (funnel(brightness, (4, 2, 1), 2), 4, 0.0, 3 * 4 + 2 * 2 + 1),
    "funnel-keep": (funnel(brightness, (4, 2, 1), 2, keep=1), 4, 1.0, 3 * 4 + 2 * 2 + 1),
    "halving": (halving(brightness, 2), 4, 0.0, 3 * 4 + 2 * 2 + 1),
    "smc": (smc(brightness, 10.0, 2), 4, 1.0, 4 * T),
    "fk-adaptive": (fk(brightness, 10.0, Adaptive(1, 4)), 4, 1.0, 4 * T),
    "paths": (paths(brightness, 2, 2, back=1), 4, 0.0, 3 * 4 + 3 * 2 + 2 * 4 * 2),
    "demon": (Demon(brightness), 4, 1.0, 1 + (T - 1) * 5),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_rows(name):
    search, n, eta, rows = SEARCHES[name]
    out = steered(search, n, eta)
    assert out.ledger.rows == 2 * rows
    assert torch.isfinite(out.images).all()
    assert out.candidates.scores.max() == out.rewards


@pytest.mark.parametrize("name", ["funnel", "smc", "paths", "demon"])
def test_one_particle_is_the_plain_call(name):
    search, _, eta, _ = SEARCHES[name]
    with torch.no_grad():
        plain = pipeline()("a cat", eta=eta, generator=tiny.generator(), **ASK).images
    assert torch.equal(steered(search, 1, eta).images, plain)


def test_rollover_never_spends_more_than_its_quota():
    out = steered(rollover(brightness, 2, 1), 6, prompt=["a cat", "dog"])
    assert out.ledger.rows <= 2 * 2 * 2 * T
    assert out.ledger.reward_calls <= 2 * 2 * T


@pytest.mark.parametrize("radius", [None, 0.5])
def test_noise_search_hands_over_its_noise(radius):
    """The noise found, given back as `latents`, is the picture found; its rows are those of all rounds."""
    pipe, g = pipeline(), tiny.generator()

    def run(controllers):
        with attach(pipe, controllers, n=3) as session:
            pipe(["a cat", "dog"], num_images_per_prompt=3, generator=g, **ASK)
        return session.state

    found = noise_search(run, brightness, rounds=3, radius=radius)
    assert found.ledger.rows == 3 * 2 * 2 * 3 * T
    assert found.ledger.reward_calls == found.ledger.decodes == 3 * 2 * 3
    assert (found.history.diff(dim=0) >= 0).all()
    with torch.no_grad():
        again = pipe(["a cat", "dog"], latents=found.noise, **ASK).images
    assert torch.allclose(again, found.x, atol=1e-4)


def test_a_generator_made_inside_the_run_is_noticed():
    pipe = pipeline()

    def run(controllers):
        with attach(pipe, controllers, n=2) as session:
            pipe("a cat", num_images_per_prompt=2, generator=tiny.generator(), **ASK)
        return session.state

    with pytest.raises(ValueError, match="same noises twice"):
        noise_search(run, brightness, rounds=2)


@pytest.mark.parametrize("options", [{"rounds": 0}, {"radius": 0.0}, {"radius": -1.0}])
def test_noise_search_has_limits(options):
    with pytest.raises(ValueError, match="rounds >= 1, and radius > 0 or None"):
        noise_search(lambda controllers: None, brightness, **options)


def test_paths_go_back_at_least_one_level():
    with pytest.raises(ValueError, match="back = 0"):
        paths(brightness, back=0)


def test_demon_needs_a_transition_that_it_knows():
    pipe = tiny.pipeline(HeunDiscreteScheduler())
    with pytest.raises(ValueError, match="draws no noise"):
        Steered(pipe, Demon(brightness))("a cat", n=2, generator=tiny.generator(), **ASK)
