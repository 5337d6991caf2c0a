"""What cannot work is refused before any long work, with the cure."""

import diffusers
import pytest
import tiny
import torch
from solver_cases import CASES, DETERMINISTIC, Case, brightness

from steer.diffusion.controllers import best_of_n, code
from steer.diffusion.pipelines import Steered, attach, denoiser_of

SEARCH = code(brightness, 2)


def never(pipe, monkeypatch):
    """Any text encoding or network call of the pipeline fails the test."""

    def fail(*args, **kwargs):
        pytest.fail("the pipeline was run")

    for part in (pipe.unet, pipe.text_encoder):
        monkeypatch.setattr(part, "forward", fail)
    return pipe


@DETERMINISTIC
def test_a_search_over_a_solver_without_noise(case, monkeypatch):
    pipe = never(case.pipe(), monkeypatch)
    with pytest.raises(ValueError, match=r"draws no noise.*best_of_n"):
        Steered(pipe, SEARCH)("a cat", n=4)


def test_attach_knows_at_the_entry_or_at_the_first_step(monkeypatch):
    with pytest.raises(ValueError, match="draws no noise"), attach(CASES["heun"].pipe(), SEARCH, 4):
        pytest.fail("entered")
    with pytest.raises(ValueError, match="draws no noise"), attach(CASES["ddim"].pipe(), SEARCH, 4, eta=0.0):
        pytest.fail("entered")
    with pytest.raises(ValueError, match="eta > 0"):
        CASES["ddim"].attached([SEARCH], 4)  # only the call's own eta decides


def test_shared_latents_need_noise_too():
    with pytest.raises(ValueError, match="draws no noise"):
        CASES["ddim"].attached([best_of_n(brightness)], 4, latents=torch.zeros(1, 4, 8, 8))


def test_eta_reaches_a_step_that_has_it():
    case, prompt = CASES["ddim-eta"], {"guidance_scale": 3.0, "num_inference_steps": 6, "output_type": "latent"}
    plain = case.run(case.pipe())
    for eta, call in ((1.0, {}), (None, {"eta": 1.0})):
        out = Steered(case.pipe(), SEARCH, eta=eta)("a cat", n=1, generator=tiny.generator(), **prompt, **call)
        assert torch.equal(out.images, plain)


@pytest.mark.parametrize(
    ("name", "eta", "words"),
    [
        ("ddim", 1.5, "expected 0"),
        ("ddim", -0.1, "expected 0"),
        ("euler-a", 0.5, "draws its own noise"),
        ("dpm2m-sde", 0.5, "draws its own noise"),
        ("dpm2m", 0.5, "history"),
        ("heun", 0.5, "history"),
        ("pndm", 0.5, "history"),
        ("unipc", 0.5, "history"),
    ],
)
def test_eta_where_it_cannot_go(name, eta, words):
    with pytest.raises(ValueError, match=words), attach(CASES[name].pipe(), SEARCH, 4, eta):
        pytest.fail("entered")


def test_eta_zero_is_the_schedulers_own_step():
    case = CASES["heun"]
    with attach(pipe := case.pipe(), eta=0):
        assert torch.equal(case.run(pipe), case.run(case.pipe()))


def refused_everywhere(pipe, words):
    for way_in in (
        lambda: Steered(pipe)("a cat"),
        lambda: attach(pipe).__enter__(),
        lambda: denoiser_of(pipe, "a cat"),
    ):
        with pytest.raises(ValueError, match=words):
            way_in()


class EulerDiscreteSchedulr(diffusers.SchedulerMixin):
    pass


def test_an_unknown_scheduler():
    pipe = CASES["ddim"].pipe()
    pipe.scheduler = EulerDiscreteSchedulr()
    refused_everywhere(pipe, r"UniPCMultistepScheduler.*closest is EulerDiscreteScheduler")


class Hoarder(diffusers.DDIMScheduler):
    """Remembers a row of each particle where nobody expects it."""

    def step(self, model_output, timestep, sample, **kwargs):
        self.hoard = [sample]
        return super().step(model_output, timestep, sample, **kwargs)


def test_a_history_that_is_not_declared():
    with pytest.raises(ValueError, match="hoard"):
        Case(lambda: Hoarder(clip_sample=False, steps_offset=1)).attached(n=2)


def test_an_unknown_pipeline():
    parts = CASES["ddim"].pipe().components
    other = diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    refused_everywhere(other, r"StableDiffusionInstructPix2PixPipeline.*one of StableDiffusionPipeline")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"prompt": []}, "non-empty"),
        ({"prompt": ["a cat", 3]}, "strings only"),
        ({}, "neither prompt"),
        ({"prompt": "a cat", "n": 0}, "n >= 1"),
        ({"prompt": "a cat", "n": 2.0}, "n >= 1"),
        ({"prompt": "a cat", "num_images_per_prompt": 0}, "at least 1"),
        ({"prompt": "a cat", "return_dict": False}, "leave it out"),
        ({"prompt": "a cat", "n": 3, "generator": [torch.Generator()] * 2}, "expected 1 or 3"),
        ({"prompt_embeds": torch.zeros(2, 16, 32), "negative_prompt_embeds": torch.zeros(1, 16, 32)}, "as many"),
    ],
)
def test_a_call_that_makes_no_sense(call, words, monkeypatch):
    with pytest.raises(ValueError, match=words):
        Steered(never(CASES["euler-a"].pipe(), monkeypatch), SEARCH)(**call)


def test_eta_given_twice():
    with pytest.raises(ValueError, match="once"):
        Steered(CASES["ddim"].pipe(), SEARCH, eta=1.0)("a cat", eta=0.5)


def test_something_that_is_no_controller(monkeypatch):
    with pytest.raises(ValueError, match="expected Controller"):
        Steered(never(CASES["euler-a"].pipe(), monkeypatch), [brightness])("a cat")


def test_a_block_longer_than_the_run(monkeypatch):
    pipe = CASES["euler-a"].pipe()
    monkeypatch.setattr(pipe.unet, "forward", lambda *a, **k: pytest.fail("the network was called"))
    with pytest.raises(ValueError, match="block = 9"):
        Steered(pipe, code(brightness, 9))("a cat", n=2, num_inference_steps=6)


@pytest.mark.parametrize("prompt", ["a cat", ["a", "b", "c", "d"]], ids=["one", "four"])
def test_attached_particles_that_were_not_asked_for(prompt):
    pipe = CASES["euler-a"].pipe()
    with pytest.raises(ValueError, match="num_images_per_prompt=4"), attach(pipe, SEARCH, 4):
        CASES["euler-a"].run(pipe, prompt)


def test_a_pipeline_is_attached_once():
    pipe = CASES["euler-a"].pipe()
    with pytest.raises(ValueError, match="one list"), attach(pipe, SEARCH, 4), attach(pipe, SEARCH, 4):
        pytest.fail("entered")
