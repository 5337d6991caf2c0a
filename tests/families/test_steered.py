"""What a steered pipeline returns."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from solver_cases import CASES, brightness
from tiny import Watch

from steer.diffusion.controllers import best_of_n, code, fk
from steer.diffusion.pipelines import Steered, attach

ASK = {"guidance_scale": 3.0, "num_inference_steps": 6}
CASE = CASES["euler-a"]
PROMPTS = ["a cat", "dog"]


def steered(controllers, prompt=PROMPTS, n=3, exact=False, **kwargs):
    given = {**ASK, "generator": tiny.generator(), "output_type": "pt", **kwargs}
    return Steered(CASE.pipe(), controllers, exact=exact)(prompt, n=n, **given)


@pytest.mark.parametrize("images", [1, 2])
def test_as_many_images_as_the_plain_pipeline_each_the_best_of_its_own_particles(images):
    out = steered(best_of_n(brightness), num_images_per_prompt=images)
    assert out.images.shape == (2 * images, 3, 16, 16)
    assert out.candidates.pictures.shape == (2 * images, 3, 3, 16, 16)
    scores = brightness(out.candidates.pictures.flatten(0, 1), None).reshape(-1, 3)
    assert torch.equal(out.candidates.scores, scores)
    assert torch.equal(out.rewards, scores.amax(1))
    assert torch.equal(out.images, out.candidates.pictures[torch.arange(2 * images), scores.argmax(1)])
    assert len(scores.argmax(1).unique()) > 1 or images == 1
    assert [row["prompt"] for row in out.trace[::3]] == [p for p in PROMPTS for _ in range(images)]


def test_images_of_one_particle_are_the_plain_ones_for_several_images():
    plain = CASE.run(CASE.pipe(), PROMPTS, num_images_per_prompt=2, output_type="pt")
    assert torch.equal(steered(best_of_n(brightness), n=1, num_images_per_prompt=2).images, plain)


@pytest.mark.parametrize("prompt", ["a cat", PROMPTS])
def test_without_a_search_the_images_are_the_plain_ones(prompt):
    out = steered([], prompt, exact=True)
    assert torch.equal(out.images, CASE.run(CASE.pipe(), prompt, output_type="pt"))
    assert out.rewards is None
    assert out.candidates.scores is None
    assert out.trace == []
    assert out.lineage.tolist() == [[[0, 1, 2]]] * len(out.images)


def test_output_types():
    assert all(isinstance(image, Image.Image) for image in steered([], output_type="pil").images)
    array = steered(best_of_n(brightness), output_type="np").images
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array, steered(best_of_n(brightness)).images.permute(0, 2, 3, 1).numpy())
    assert steered(best_of_n(brightness), output_type="latent").images.shape == (2, 4, 8, 8)


def test_the_winner_of_a_search_is_in_every_slot_of_the_attached_pipeline():
    out = steered(code(brightness, 2))
    with attach(pipe := CASE.pipe(), code(brightness, 2), 3) as session:
        images = CASE.run(pipe, PROMPTS, num_images_per_prompt=3, output_type="pt")
    assert torch.equal(images.unflatten(0, (2, 3)), out.images[:, None].expand(2, 3, 3, 16, 16))
    assert session.ledger.decodes == out.ledger.decodes == 3 * 6
    assert torch.equal(session.candidates.scores.amax(-1), out.rewards)


def test_lineage_and_trace_tell_one_story():
    out = steered(code(brightness, 2))
    assert out.lineage.shape == (2, 4, 3)
    assert [row["step"] for row in out.trace] == [2] * 6 + [4] * 6 + [6] * 6
    for row in out.trace:
        look = 1 + [2, 4, 6].index(row["step"])
        assert row["ancestor"] == out.lineage[row["image"], look, row["particle"]]
        same = [r["score"] for r in out.trace if (r["step"], r["image"]) == (row["step"], row["image"])]
        assert same[row["ancestor"]] == max(same)
        assert row["prompt"] == PROMPTS[row["image"]]


def test_the_best_particle_is_found_though_a_resampling_may_have_dropped_it():
    """FK steering at beta < 0 prefers dark particles; the image returned is still the highest-scored candidate."""
    out = steered(fk(brightness, beta=-1e4, every=3, ess=1.0), n=4)
    scores = out.candidates.scores
    assert torch.equal(out.rewards, scores.amax(1))
    kept = out.lineage[:, -1]
    assert not (kept == scores.argmax(1, keepdim=True)).any()
    assert torch.allclose(brightness(out.images, None), out.rewards, atol=1e-6)


def test_two_searches_one_after_the_other():
    def darkness(pictures, prompts):
        return -brightness(pictures, prompts)

    out = steered([best_of_n(brightness), best_of_n(darkness)])
    pictures = out.candidates.pictures
    bright = brightness(pictures.flatten(0, 1), None).reshape(2, 3)
    assert torch.equal(out.images, pictures[torch.arange(2), bright.argmax(1)])
    assert torch.allclose(out.rewards, -bright.amax(1))


def test_the_reward_sees_pictures_and_their_prompts():
    seen = []

    def note(pictures, prompts):
        seen.append((pictures, prompts))
        return brightness(pictures, prompts)

    steered(best_of_n(note), n=2)
    ((pictures, prompts),) = seen
    assert prompts == ["a cat", "a cat", "dog", "dog"]
    assert pictures.dtype == torch.float32
    assert 0 <= pictures.min() <= pictures.max() <= 1


def test_embeddings_in_place_of_prompts():
    pipe = CASE.pipe()
    positive, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    given = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    ours = steered(code(brightness, 2), None, **given)
    assert torch.equal(ours.images, steered(code(brightness, 2)).images)
    assert {row["prompt"] for row in ours.trace} == {""}


def test_exact_runs_choose_the_same_image_again_among_more_particles():
    """The best of five is the best of three, or one of the other two: no particle has changed."""
    three, five = (steered(best_of_n(brightness), n=n, exact=True) for n in (3, 5))
    assert torch.equal(three.candidates.scores, five.candidates.scores[:, :3])
    assert torch.equal(three.candidates.pictures, five.candidates.pictures[:, :3])


def test_results_are_frozen_and_configurations_print():
    out = steered([], n=1)
    with pytest.raises(FrozenInstanceError):
        out.images = None
    assert "block=2" in repr(Steered(None, code(brightness, 2), eta=0.5))


def test_the_users_generator_moves_on_as_in_a_plain_call():
    plain, ours = tiny.generator(), tiny.generator()
    CASE.run(CASE.pipe(), generator=plain)
    steered([Watch()], "a cat", n=3, generator=ours)
    assert torch.equal(plain.get_state(), ours.get_state())


def test_an_interrupted_run_still_has_an_image():
    def stop(pipe, i, t, given):
        pipe._interrupt = i == 2
        return given

    out = steered(code(brightness, 2), callback_on_step_end=stop)
    assert out.images.shape == (2, 3, 16, 16)
    assert out.rewards is None
    assert out.lineage.shape == (2, 2, 3)
