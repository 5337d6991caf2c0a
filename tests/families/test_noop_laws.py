"""An attached pipeline without steering is the pipeline, bit for bit, and is left as it was."""

import pytest
import torch
from solver_cases import CASES, EVERY, Gather, brightness

from steer.diffusion.control import Controller
from steer.diffusion.controllers import best_of_n, code
from steer.diffusion.pipelines import Steered, attach


@EVERY
def test_no_controllers_is_the_plain_pipeline(case):
    plain = case.run(case.pipe(), output_type="pt")
    pipe = case.pipe()
    with attach(pipe) as session:
        attached = case.run(pipe, output_type="pt")
    assert torch.equal(attached, plain)
    assert session.ledger.decodes == 1
    assert session.ledger.rows == 2 * len(pipe.scheduler.timesteps)


@EVERY
@pytest.mark.parametrize("prompt", ["a cat", ["a cat", "dog"]], ids=["one", "two"])
def test_one_particle_under_a_search_is_the_plain_pipeline(case, prompt):
    if case.eta is not None:
        pytest.skip("the plain pipeline has no such step")
    plain = case.run(case.pipe(), prompt, output_type="pt")
    kwargs = {"guidance_scale": 3.0, "generator": torch.Generator().manual_seed(3), **case.call}
    out = Steered(case.pipe(), code(brightness, block=2))(
        prompt, n=1, num_inference_steps=case.steps, output_type="pt", **kwargs
    )
    assert torch.equal(out.images, plain)
    assert out.ledger.decodes == out.ledger.reward_calls == len(plain)  # the final look's pictures are the pipeline's
    assert torch.equal(out.rewards, brightness(plain, None))


def attributes(pipe):
    return [sorted(vars(part)) for part in (pipe, pipe.scheduler, pipe.unet, pipe.vae)]


class Broken(Controller):
    def look(self, state):
        raise KeyError("look")


@pytest.mark.parametrize("place", ["look", "step", "forward", None])
@pytest.mark.parametrize("case", [CASES["ddim-eta"], CASES["unipc"], CASES["heun"]], ids=["ddim", "unipc", "heun"])
def test_a_pipeline_is_left_as_it_was(case, place, monkeypatch):
    pipe = case.pipe()
    plain = case.run(pipe)
    before = attributes(pipe)

    def fail(*args, **kwargs):
        raise KeyError("inside")

    with monkeypatch.context() as patch:
        if place == "step":
            patch.setattr(type(pipe.scheduler), "scale_model_input", fail)
        if place == "forward":
            patch.setattr(pipe.unet.time_proj, "forward", fail)
        if place is None:
            case.attached([Gather((1, 1, 0, 0))], pipe=pipe)
        else:
            with pytest.raises(KeyError):
                case.attached([Broken()] if place == "look" else [], pipe=pipe)
    assert attributes(pipe) == before
    assert torch.equal(case.run(pipe), plain)


def test_an_attribute_that_was_there_is_put_back():
    pipe = CASES["ddim"].pipe()
    hook = pipe.unet.forward
    object.__setattr__(pipe.unet, "forward", hook)
    with attach(pipe):
        assert vars(pipe.unet)["forward"] is not hook
    assert vars(pipe.unet)["forward"] is hook


def test_the_same_session_serves_call_after_call():
    case = CASES["ddim-eta"]
    pipe = case.pipe()
    with attach(pipe, [best_of_n(brightness)], 2) as session:
        first = case.run(pipe, num_images_per_prompt=2)
        rows = session.ledger.rows
        second = case.run(pipe, num_images_per_prompt=2)
    assert torch.equal(first, second)
    assert session.ledger.rows == rows == 2 * 2 * 6
