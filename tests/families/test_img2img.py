"""Image to image under steer: the plain pipeline's start for every particle, and only the steps that are run."""

from dataclasses import dataclass

import diffusers
import pytest
import tiny
import torch
from solver_cases import CASES, Case, brightness, noise_of, of
from tiny import Watch

from steer.diffusion.controllers import best_of_n, code
from steer.diffusion.pipelines import Steered, attach, denoiser_of

PROMPTS = ["a cat", "dog"]
PICTURES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(8))
RUN = 4  # of 6 steps at strength 0.7


@dataclass(frozen=True)
class Img2Img(Case):
    """A case of text to image, started from a picture part of the way down."""

    def pipe(self):
        parts = super().pipe().components
        pipe = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def run(self, pipe, prompt="a cat", seed=3, **kwargs):
        return super().run(pipe, prompt, seed, **{"image": PICTURES[:1], "strength": 0.7, **kwargs})

    def steered(self, controllers, prompt="a cat", n=3, exact=False, **kwargs):
        given = {"image": PICTURES[:1], "strength": 0.7, "generator": tiny.generator(), "guidance_scale": 3.0}
        given = {**given, "num_inference_steps": self.steps, "output_type": "latent", **self.call, **kwargs}
        return Steered(self.pipe(), controllers, self.eta, exact)(prompt, n=n, **given)


def img2img(*names):
    return {name: Img2Img(**vars(CASES[name])) for name in names or CASES}


EVERY = of(img2img())
SOME = of(img2img("ddpm", "ddim-eta", "dpm2m-sde", "unipc"))
NOISY = of(img2img("ddpm", "ddim-eta", "euler-a", "dpm2m-sde"))
DDPM = img2img("ddpm")["ddpm"]


@EVERY
def test_no_controllers_is_the_plain_pipeline(case):
    plain = case.run(case.pipe(), output_type="pt")
    attached, session = case.attached(n=1, output_type="pt", pipe=(pipe := case.pipe()))
    if case.eta is None:
        assert torch.equal(attached, plain)
    assert session.ledger.rows == 2 * pipe._num_timesteps
    assert session.entered.finished


@SOME
@pytest.mark.parametrize("prompt", ["a cat", PROMPTS], ids=["one", "two"])
def test_one_particle_under_a_search_is_the_plain_pipeline(case, prompt):
    plain = case.run(case.pipe(), prompt, output_type="pt")
    out = case.steered(code(brightness, 2), prompt, n=1, output_type="pt")
    assert torch.equal(out.images, plain)
    assert torch.equal(out.rewards, brightness(plain, None))


@SOME
@pytest.mark.parametrize(("strength", "steps"), [(0.7, 4), (1.0, 6)])
def test_exact_particles_are_the_same_for_any_n_and_the_first_is_plain(case, strength, steps):
    plain = case.run(case.pipe(), PROMPTS, strength=strength)
    four, session = case.attached(n=4, exact=True, prompt=PROMPTS, strength=strength)
    two, _ = case.attached(n=2, exact=True, prompt=PROMPTS, strength=strength)
    assert session.state.steps == steps
    assert torch.equal(four[[0, 4]], plain)
    assert torch.equal(four.unflatten(0, (2, 4))[:, :2], two.unflatten(0, (2, 2)))
    assert len(four.unique(dim=0)) == 8


@NOISY
def test_noise_is_the_same_for_any_n(case, monkeypatch):
    four, eight = noise_of(case, 4, monkeypatch), noise_of(case, 8, monkeypatch)
    assert len(four) == len(eight) > 1
    assert all(torch.equal(a, b[:4]) for a, b in zip(four, eight))
    assert all(len(noise.unique(dim=0)) == 8 for noise in eight)


@pytest.mark.parametrize("pictures", [1, 2])
def test_particles_share_the_reference_and_its_posterior_sample(pictures, monkeypatch):
    case, watch = img2img("ddim")["ddim"], Watch()
    given = {"prompt": PROMPTS, "image": PICTURES[:pictures]}
    (noise,) = noise_of(case, 3, monkeypatch, controllers=[watch], **given)
    start = watch.states[0]
    clean = (start.x - start.level.sigma * noise) / start.level.alpha
    g, pipe = tiny.generator(), case.pipe()
    with torch.no_grad():
        encoded = pipe.vae.encode(2 * PICTURES[:pictures] - 1).latent_dist.sample(g) * pipe.vae.config.scaling_factor
    expected = encoded[[0, 0, 0, 1, 1, 1]] if pictures == 2 else encoded.expand(6, -1, -1, -1)
    assert torch.allclose(clean, expected, atol=1e-5)
    assert torch.equal(noise[[0, 3]], torch.randn(2, 4, 8, 8, generator=g))  # the plain pipeline's next draw


@NOISY
@pytest.mark.parametrize("exact", [False, True], ids=["batched", "exact"])
def test_code_pays_for_the_steps_that_are_run(case, exact):
    out = case.steered(code(brightness, 2), PROMPTS, n=3, exact=exact)
    assert out.ledger.rows == 2 * 2 * (3 * (RUN - 1) + 1)
    assert out.ledger.reward_calls == out.ledger.decodes == 2 * 3 * 2
    assert sorted({row["step"] for row in out.trace}) == [2, RUN]
    distinct = case.steered(code(brightness, 2, common_start=False), PROMPTS, n=3, exact=exact)
    assert distinct.ledger.rows == 2 * 2 * 3 * RUN


@pytest.mark.parametrize(
    ("name", "strength", "calls", "steps"),
    [
        ("heun", 0.7, 7, 4),
        ("pndm", 0.7, 5, 4),
        ("dpm-single", 0.7, 4, 3),
        ("dpm-single", 0.9, 5, 4),
        ("ddpm", 0.2, 1, 1),
    ],
)
def test_one_look_for_each_noise_level_from_the_truncated_start(name, strength, calls, steps):
    case, watch = img2img(name)[name], Watch()
    pipe = case.pipe()
    plain = case.run(pipe, strength=strength)
    attached, session = case.attached([watch], 1, pipe=pipe, strength=strength)
    assert torch.equal(attached, plain)
    assert session.calls == pipe._num_timesteps == calls
    assert [state.i for state in watch.states] == list(range(steps + 1))
    assert [state.level.progress for state in watch.states] == [i / steps for i in range(steps + 1)]
    assert int(watch.states[0].level.t) == int(pipe.scheduler.timesteps[session.skipped])


@NOISY
def test_the_winner_is_the_best_of_its_own_particles(case):
    out = case.steered(code(brightness, 2), PROMPTS, n=4, output_type="pt")
    scores = brightness(out.candidates.pictures.flatten(0, 1), None).reshape(2, 4)
    assert torch.equal(out.candidates.scores, scores)
    assert torch.equal(out.images, out.candidates.pictures[torch.arange(2), scores.argmax(1)])


@pytest.mark.parametrize(("pictures", "images"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("generators", ["one", "list"])
def test_every_image_keeps_the_reference_that_the_plain_call_gives_it(pictures, images, generators):
    given = {"image": PICTURES[:pictures], "num_images_per_prompt": images}

    def fresh():
        return tiny.generator() if generators == "one" else [tiny.generator(seed) for seed in range(2 * images)]

    plain = DDPM.run(DDPM.pipe(), PROMPTS, generator=fresh(), **given)
    out = DDPM.steered([], PROMPTS, n=3, exact=True, generator=fresh(), **given)
    assert torch.equal(out.images, plain)
    assert len(out.candidates.latents.flatten(0, 1).unique(dim=0)) == 2 * images * 3


def test_latents_as_the_reference():
    latents = torch.randn(1, 4, 8, 8, generator=tiny.generator(5))
    plain = DDPM.run(DDPM.pipe(), PROMPTS, image=latents)
    assert torch.equal(DDPM.attached((), 3, True, prompt=PROMPTS, image=latents)[0][[0, 3]], plain)


def test_a_pipeline_is_left_as_it_was_and_a_generator_moves_on_as_in_a_plain_call():
    pipe, plain, ours = DDPM.pipe(), tiny.generator(), tiny.generator()
    first = DDPM.run(pipe, generator=plain)
    before = [sorted(vars(part)) for part in (pipe, pipe.scheduler, pipe.unet, pipe.vae)]
    DDPM.attached([code(brightness, 2)], 3, pipe=pipe, generator=ours)
    assert torch.equal(plain.get_state(), ours.get_state())
    with pytest.raises(ValueError, match="block = 9"):
        DDPM.attached([code(brightness, 9)], 3, pipe=pipe)
    assert [sorted(vars(part)) for part in (pipe, pipe.scheduler, pipe.unet, pipe.vae)] == before
    assert torch.equal(DDPM.run(pipe), first)


def test_one_session_serves_calls_of_any_strength():
    pipe = DDPM.pipe()
    with attach(pipe, best_of_n(brightness), 2) as session:
        for strength, steps in ((0.7, 4), (1.0, 6), (0.5, 3)):
            DDPM.run(pipe, num_images_per_prompt=2, strength=strength)
            assert session.ledger.rows == 2 * 2 * steps
            assert session.entered.i == steps


@pytest.mark.parametrize(
    ("controllers", "call", "words"),
    [
        ([code(brightness, 5)], {}, "block = 5 in a run of 4 steps"),
        ([], {"strength": 0.1}, r"strength = 0.1 of num_inference_steps = 6 leaves no step"),
        ([], {"image": PICTURES[:3]}, "3 references for 2 images"),
        ([], {"image": PICTURES[:4]}, "4 references for 2 images"),
    ],
)
def test_what_cannot_work_is_refused_before_the_network_is_called(controllers, call, words, monkeypatch):
    pipe = DDPM.pipe()
    monkeypatch.setattr(pipe.unet, "forward", lambda *a, **k: pytest.fail("the network was called"))
    with pytest.raises(ValueError, match=words):
        DDPM.attached(controllers, 2, pipe=pipe, prompt=PROMPTS, **call)


def test_the_captured_denoiser_is_that_of_text_to_image():
    with pytest.raises(ValueError, match=r"starts from a reference.*AutoPipelineForText2Image\.from_pipe"):
        denoiser_of(DDPM.pipe(), "a cat", image=PICTURES[:1])
