"""Networks that are compiled, in half precision, or called with rescaled guidance."""

from dataclasses import dataclass

import pytest
import tiny
import torch
from solver_cases import CASES, Gather, brightness, close

from steer.diffusion.control import Controller
from steer.diffusion.controllers import code
from steer.diffusion.loop import finished, sample
from steer.diffusion.pipelines import Steered, denoiser_of
from steer.diffusion.solve import ddim


@dataclass(frozen=True)
class Through(Controller):
    """Wraps the denoiser and changes nothing."""

    def wrap(self, denoiser):
        return lambda x, level, cond: denoiser(x, level, cond)


@pytest.mark.parametrize("name", ["ddim-eta", "euler-a", "heun", "dpm2m-sde", "pndm", "lcm"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_a_wrap_that_changes_nothing_changes_nothing(name, rescale):
    case = CASES[name]
    wrapped, session = case.attached([Through()], exact=True, guidance_rescale=rescale)
    assert close(wrapped, case.attached(exact=True, guidance_rescale=rescale)[0], 1e-3)
    assert session.ledger.rows == 4 * 2 * len(session.scheduler.timesteps)


def test_rescaled_guidance_in_our_own_loop():
    case, ask = CASES["ddim"], {"guidance_scale": 3.0, "guidance_rescale": 0.7}
    d = denoiser_of(case.pipe(), "a cat", generator=tiny.generator(), num_inference_steps=6, **ask)
    ours = finished(sample(d, d.shape, d.schedule, cond=d.cond, x=d.x, solver=ddim(0.0)))
    assert close(ours.x, case.run(case.pipe(), **ask))
    assert not close(ours.x, case.run(case.pipe()), 1e-2)


@pytest.mark.parametrize("name", ["ddim-eta", "euler-a", "unipc", "euler-eta"])
def test_half_precision(name):
    case = CASES[name]
    pipe = case.pipe().to(torch.bfloat16)
    plain = case.run(pipe)
    one, _ = case.attached([Gather((0,)), Through()] if case.eta else [Gather((0,))], n=1, pipe=pipe)
    assert one.dtype == plain.dtype == torch.bfloat16
    assert case.eta is not None or torch.equal(one, plain)
    many, _ = case.attached([Gather((1, 0, 0, 1))], pipe=pipe)
    assert torch.isfinite(many).all()


def test_a_compiled_network():
    case = CASES["ddim-eta"]
    pipe = case.pipe()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    names = sorted(vars(pipe.unet))
    plain = case.run(pipe, output_type="pt")
    out = Steered(pipe, code(brightness, 3), eta=1.0, exact=True)(
        "a cat", n=2, generator=tiny.generator(), num_inference_steps=6, guidance_scale=3.0, output_type="pt"
    )
    again = Steered(case.pipe(), code(brightness, 3), eta=1.0, exact=True)(
        "a cat", n=2, generator=tiny.generator(), num_inference_steps=6, guidance_scale=3.0, output_type="pt"
    )
    assert torch.equal(out.images, again.images)
    assert out.ledger.rows == 2 * (2 * 5 + 1)
    assert sorted(vars(pipe.unet)) == names
    assert torch.equal(case.run(pipe, output_type="pt"), plain)
