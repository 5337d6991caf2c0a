"""The laws of an attached pipeline, for every family and scheduler."""

from dataclasses import dataclass

import pytest
import torch
from family_cases import DETERMINISTIC, EVERY, MATRIX, NOISY, ONE_EACH, PROMPTS
from solver_cases import Gather, PermuteNoise, brightness, close

from steer.diffusion.control import Controller
from steer.diffusion.controllers import best_of_n, code
from steer.diffusion.pipelines import Steered, attach
from steer.diffusion.pipelines.families import FAMILIES


def test_every_family_is_in_the_matrix():
    driven = {type(case.pipe()).__name__ for case in MATRIX.values()}
    assert driven | {"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"} == set(FAMILIES)


@EVERY
def test_without_controllers_it_is_the_plain_pipeline(case):
    plain, pipe = case.plain, case.pipe()
    with attach(pipe, eta=case.eta) as session:
        assert torch.equal(case.run(pipe), plain)
    steps = len(pipe.scheduler.timesteps) - session.skipped
    assert session.ledger.rows == case.branches * len(PROMPTS) * steps


@EVERY
def test_the_first_particle_is_plain(case):
    assert torch.equal(case.three[:, 0], case.plain)
    assert len(case.three.flatten(0, 1).unique(dim=0)) == 6


@ONE_EACH
def test_particles_do_not_depend_on_their_number_nor_pictures_on_steer(case):
    two, session = case.attached(n=2, exact=True, output_type="pt")
    plain = case.run(case.pipe(), output_type="pt")
    assert torch.equal(two[[0, 2]], plain)
    assert torch.equal(session.candidates.latents, case.three[:, :2])
    assert torch.equal(session.candidates.pictures.flatten(0, 1), two)
    one = Steered(case.pipe(), [], case.eta)(PROMPTS, n=1, **case.ask(output_type="pt"))
    assert torch.equal(one.images, plain)
    assert one.ledger.decodes == len(PROMPTS)


@ONE_EACH
def test_one_batch_of_all_rows_agrees_with_exact_ones(case):
    assert close(case.attached()[0], case.three.flatten(0, 1))


@DETERMINISTIC
def test_copies_of_a_particle_become_that_particle(case):
    step = case.runs - 2
    copied, session = case.attached([Gather((2, 2, 2), step)], exact=True)
    assert torch.equal(copied.unflatten(0, (2, 3)), case.three[:, 2:].expand_as(case.three))
    before = session.looks[step] + 1
    assert session.ledger.rows == case.branches * len(PROMPTS) * (3 * before + session.calls - before)


@NOISY
def test_a_permutation_of_particles_is_a_permutation_of_noise(case):
    order, step = (2, 0, 1), case.runs - 2
    moved = case.attached([Gather(order, step)], exact=True)[0].unflatten(0, (2, 3))
    back = tuple(3 * p + order.index(k) for p in (0, 1) for k in range(3))
    renoised = case.attached([PermuteNoise(back, step)], exact=True)[0].unflatten(0, (2, 3))
    assert torch.equal(moved, renoised[:, list(order)])


@NOISY
def test_a_search_runs_and_pays_exactly(case):
    out = Steered(case.pipe(), code(brightness, 2), case.eta)(PROMPTS, n=3, **case.ask(output_type="pt"))
    assert out.ledger.rows == case.branches * len(PROMPTS) * (3 * (case.runs - 1) + 1)
    assert sorted({row["step"] for row in out.trace}) == [*range(2, case.runs, 2), case.runs]
    scores = brightness(out.candidates.pictures.flatten(0, 1), None).reshape(2, 3)
    assert torch.equal(out.candidates.scores, scores)
    assert torch.equal(out.images, out.candidates.pictures[torch.arange(2), scores.argmax(1)])
    assert out.ledger.decodes == out.ledger.reward_calls == len(out.trace)


@DETERMINISTIC
def test_the_best_of_n_is_found_at_the_end(case):
    out = Steered(case.pipe(), best_of_n(brightness))(PROMPTS, n=3, **case.ask(output_type="pt"))
    scores = brightness(out.candidates.pictures.flatten(0, 1), None).reshape(2, 3)
    assert torch.equal(out.images, out.candidates.pictures[torch.arange(2), scores.argmax(1)])
    assert torch.equal(out.rewards, scores.amax(1))


@dataclass(frozen=True)
class Through(Controller):
    """Wraps the denoiser, or asks it at every look, and changes nothing."""

    evaluates: bool = False

    def wrap(self, denoiser):
        return denoiser if self.evaluates else lambda x, level, cond: denoiser(x, level, cond)

    def look(self, state):
        return state if state.finished else state.evaluated()


@ONE_EACH
@pytest.mark.parametrize("evaluates", [False, True], ids=["wrapped", "asked"])
def test_guidance_is_the_pipelines_own(case, evaluates):
    through, session = case.attached([Through(evaluates)], exact=True)
    assert close(through, case.three.flatten(0, 1), 1e-3)
    assert session.ledger.rows == 3 * case.branches * len(PROMPTS) * session.calls


class Broken(Controller):
    def look(self, state):
        raise KeyError("look")


@ONE_EACH
@pytest.mark.parametrize("place", ["look", "network", "step"])
def test_a_pipeline_is_left_as_it_was(case, place, monkeypatch):
    pipe = case.pipe()
    network = getattr(pipe, "unet", None) or pipe.transformer
    plain = case.run(pipe)
    parts = [pipe, pipe.scheduler, network, pipe.vae]
    before = [sorted(vars(part)) for part in parts]

    def fail(*args, **kwargs):
        raise KeyError(place)

    with monkeypatch.context() as patch:
        if place == "network":
            patch.setattr(next(network.children()), "forward", fail)
        if place == "step":
            patch.setattr(type(pipe.scheduler), "step", fail)
        with pytest.raises(KeyError, match=place):
            case.attached([Broken()] if place == "look" else [], pipe=pipe)
    assert [sorted(vars(part)) for part in parts] == before
    assert torch.equal(case.run(pipe), plain)
