"""Gradient methods on a pipeline: through its guidance, its network and its decoder, in both drivers."""

from dataclasses import dataclass, replace

import pytest
import tiny
import torch
from solver_cases import CASES, close
from tiny import Watch

from steer import Controller, gradients, guidance
from steer.diffusion.loop import finished, sample
from steer.diffusion.noise import ParticleNoise
from steer.diffusion.pipelines import Steered, attach, denoiser_of

STEPS = 4
ASK = {"guidance_scale": 3.0, "num_inference_steps": STEPS}
PROMPTS = ["a cat", "dog"]


def dark(pictures, prompts):
    """Minus the squared distance to grey."""
    return -(pictures - 0.1).square().mean((1, 2, 3))


METHODS = {
    "universal": gradients.universal_guidance(dark, forward=1000.0, backward=150.0, inner=2),
    "dps": gradients.dps(dark, 300.0),
    "mpgd": gradients.mpgd(dark, 0.1),
}


def run(controllers, case="ddim-eta", n=1, prompt=PROMPTS, exact=False, **kwargs):
    """(latents, session) of a pipeline's run."""
    case = CASES[case]
    pipe = case.pipe()
    asked = {"output_type": "latent", "num_images_per_prompt": n, "generator": tiny.generator(), **ASK, **case.call}
    with attach(pipe, controllers, n, case.eta, exact) as session:
        return pipe(prompt, **{**asked, **kwargs}).images, session


@pytest.mark.parametrize("name", METHODS)
def test_both_drivers_agree_and_the_reward_rises(name):
    plain, _ = run([])
    theirs, session = run(METHODS[name])
    d = denoiser_of(CASES["ddim-eta"].pipe(), PROMPTS, generator=tiny.generator(), **ASK)
    g = tiny.generator()
    torch.randn(d.x.shape, generator=g)  # the pipeline drew its first noise here, and d.x is that
    given = {"cond": d.cond, "prompts": d.prompts, "x": d.x, "generator": g, "decode": d.decode}
    with torch.no_grad():
        ours = finished(sample(d, d.shape, d.schedule, METHODS[name], **given))
        scores = [dark(d.decode(latents), PROMPTS) for latents in (plain, theirs)]
    assert close(ours.x, theirs, 1e-3)
    assert not close(theirs, plain, 1e-2)
    assert (scores[1] > scores[0]).all()
    backward = 0 if name == "mpgd" else 2 * 2 * STEPS
    for ledger in (session.ledger, ours.run.ledger):
        assert (ledger.rows, ledger.backward_rows) == (2 * 2 * STEPS, backward)
        assert ledger.reward_calls == ledger.decodes == 2 * STEPS * (2 if name == "universal" else 1)


def test_at_strength_zero_it_is_the_plain_pipeline():
    plain, session = run([])
    idle, guided = run([gradients.dps(dark, 0.0), gradients.mpgd(dark, 0.0), gradients.reno(dark, 0)])
    assert torch.equal(idle, plain)
    assert guided.ledger.rows == session.ledger.rows


def test_guidance_before_a_gradient_costs_no_evaluation_of_its_own():
    """The gradient's look is the one that asks the network; guidance only takes its branches apart."""
    latents, session = run([guidance.cfg(3.0), METHODS["dps"]])
    assert close(latents, run(METHODS["dps"])[0], 1e-4)
    assert (session.ledger.rows, session.ledger.backward_rows) == (2 * 2 * STEPS, 2 * 2 * STEPS)


def test_exact_batches_keep_a_particle_apart_from_the_others():
    alone, _ = run(METHODS["universal"], exact=True, prompt="a cat")
    among, session = run(METHODS["universal"], n=3, exact=True, prompt="a cat")
    assert torch.equal(among[0], alone[0])
    assert session.ledger.backward_rows == session.ledger.rows == 2 * 3 * STEPS


def test_optimised_noise_is_what_the_scheduler_starts_from():
    """Through all steps of a deterministic run: the best iterate's picture is the run's."""
    watch, climb = Watch(), gradients.dno(dark, iterations=3, lr=0.05, weight=0.01)
    plain, _ = run([], "ddim", n=2, prompt="a cat")
    latents, session = run([climb, watch], "ddim", n=2, prompt="a cat")
    case = CASES["ddim"]
    again = case.pipe()("a cat", latents=watch.states[0].x, num_images_per_prompt=2, output_type="latent", **ASK).images
    assert close(latents, again, 1e-4)
    with torch.no_grad():
        before, after = (dark(session.state.run.decode(x), None) for x in (plain, latents))
    assert (after > before).all()
    assert session.ledger.backward_rows == 2 * 2 * 3 * STEPS
    assert session.ledger.rows == 2 * 2 * (2 * 3 * STEPS + STEPS + 1)


@pytest.mark.parametrize("name", ["ddim-eta", "ddpm", "euler-a", "euler-eta"])
def test_the_transition_that_twisted_weighs_is_the_schedulers(name, monkeypatch):
    """x' - mean is s times the noise that was drawn: only then is the ratio of p and q exact."""
    drawn, draw = [], ParticleNoise.draw

    def noted(self, plain, alias=None):
        drawn.append(draw(self, plain, alias))
        return drawn[-1]

    monkeypatch.setattr(ParticleNoise, "draw", noted)
    watch, search = Watch(), gradients.twisted(dark, beta=20.0, ess=1e-3)
    _, session = run([search, watch], name, n=2, prompt="a cat")
    for i in range(STEPS - 1):
        memory = search.recalled(watch.states[i])
        apart = watch.states[i + 1].x - memory["mean"]
        assert close(apart, search._scale(watch.states[i], i) * drawn[i + 1], 1e-3)
        assert memory["shift"].abs().max() > 0
    assert session.ledger.rows == 2 * 2 * STEPS
    noisy = sum(search._scale(watch.states[i], i) > 0 for i in range(STEPS))  # DDIM ends above sigma = 0
    assert session.ledger.backward_rows == 2 * 2 * noisy >= 2 * 2 * (STEPS - 1)
    assert torch.isfinite(search.log_z(session.state)).all()


def test_solvers_that_do_not_follow_an_edit_are_refused():
    for case in ("dpm2m", "unipc"):
        with pytest.raises(ValueError, match="first-order"):
            run(METHODS["dps"], case)
    pipe = CASES["ddim-eta"].pipe()
    pipe.scheduler.register_to_config(clip_sample=True)
    with pytest.raises(ValueError, match="clips x0"):
        Steered(pipe, METHODS["dps"])("a cat", n=1, output_type="latent", **ASK)
    latents, _ = run(gradients.lgd(dark, 30.0, samples=2, gamma=0.1), "dpm2m")  # an edit of x0 serves any solver
    assert torch.isfinite(latents).all()


def test_coupled_rows_are_all_evaluated_in_one_batch():
    @dataclass(frozen=True)
    class Coupled(Controller):
        couples_rows: bool = True

    given = {"n": 3, "prompt": "a cat", "latents": torch.randn(1, 4, 8, 8, generator=tiny.generator())}
    (_, shared), (_, coupled) = run([Coupled(False)], **given), run([Coupled()], exact=True, **given)
    assert shared.ledger.rows == 2 * (1 + 3 * (STEPS - 1))
    assert coupled.ledger.rows == 2 * 3 * STEPS


def test_an_edit_of_x0_at_the_last_look_reaches_the_picture():
    class White(Controller):
        def look(self, state):
            return replace(state, x0=0 * state.x0 + 3) if state.finished else state

    latents, _ = run([White()])
    assert torch.equal(latents, torch.full_like(latents, 3))
