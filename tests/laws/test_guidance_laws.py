"""Guidance on a pipeline and in our own loop: equal, exactly paid for, beside searches, and refused where wrong."""

import diffusers.guiders as theirs
import pytest
import tiny
import torch
from diffusers import DPMSolverMultistepScheduler
from methods.guidance_layers import ASK, pipeline, steered, stock
from methods.guidance_toys import Classes, asking, concept, guided, noise, same, two_classes

from steer import Steered, best_of_n, code, denoiser_of, during, finished, guidance, sample
from steer.diffusion.controllers.guidance.core import Guide, Interval
from steer.diffusion.controllers.guidance.rules import Cfg
from steer.diffusion.schedule import vp
from steer.diffusion.solve import ddim, dpmpp_2m, heun


def bright(pictures, prompts):
    return pictures.mean((1, 2, 3))


def first(x, prompts):
    return x[:, 0]


PIPE = pipeline()


def network(prompt="a cat", **kwargs):
    return denoiser_of(PIPE, prompt, generator=tiny.generator(), num_inference_steps=3, **kwargs)


@pytest.mark.parametrize("weight", [0.0, 1.5, 3.0])
def test_the_pipelines_own_guidance_whatever_its_scale(weight):
    ours = steered(PIPE, guidance.cfg(weight))
    if weight > 1:
        assert same(ours.images, stock(PIPE, weight), 1e-5)
    assert ours.ledger.rows == 3 * (1 if weight == 0 else 2)
    assert same(steered(PIPE, guidance.cfg(weight), guidance_scale=9.0).images, ours.images, 1e-5)


def test_weight_1_is_the_pipeline_without_guidance():
    ours = steered(PIPE, guidance.cfg(1.0))
    assert same(ours.images, stock(PIPE, 1.0), 1e-5)
    assert ours.ledger.rows == 3


def test_rescaled_guidance_is_the_pipelines():
    assert same(steered(PIPE, guidance.rescaled(3.0, 0.7)).images, stock(PIPE, 3.0, guidance_rescale=0.7), 1e-5)


@torch.no_grad()
def test_both_drivers_agree():
    d = network(guidance_scale=2.0)
    for guide in (guidance.cfg(3.0), guidance.apg(3.0), guidance.cfg_pp(0.6, d.schedule)):
        ours = finished(sample(d, d.shape, d.schedule, guide, cond=d.cond, x=d.x, solver=ddim(0.0)))
        theirs_ = steered(PIPE, guide)
        assert same(ours.x, theirs_.images, 1e-5)
        assert ours.run.ledger.rows == theirs_.ledger.rows == 2 * 3


@torch.no_grad()
def test_cfg_pp_on_the_pipeline_is_the_paper_on_its_branches():
    d = network(guidance_scale=2.0)
    x = d.x
    for level, to in zip(d.schedule[:-1], d.schedule[1:]):
        free, asked = (d(x, level, {name: leaf[:, [k]] for name, leaf in d.cond.items()}) for k in (0, 1))
        x = to.alpha * (free + 0.6 * (asked - free)) + to.sigma * (x - level.alpha * free) / level.sigma
    assert same(steered(PIPE, guidance.cfg_pp(0.6, d.schedule)).images, x, 1e-5)


@pytest.mark.parametrize("guide", [guidance.cfg(3.0), guidance.apg(3.0, momentum=0.0)], ids=["cfg", "apg"])
def test_particles_do_not_depend_on_their_number(guide):
    few, many = (
        Steered(PIPE, guide, exact=True)("a cat", n=n, guidance_scale=2.0, eta=1.0, generator=tiny.generator(), **ASK)
        for n in (2, 4)
    )
    assert torch.equal(few.candidates.latents, many.candidates.latents[:, :2])
    assert many.ledger.rows == 2 * 4 * 3


def test_rows_of_an_interval_under_a_search():
    """One row for the common start, guided rows at steps 1 and 2, conditional ones at step 3."""
    guide = guidance.interval(guidance.cfg(3.0), progress=(0.25, 0.75))
    out = steered(PIPE, [guide, code(bright, 1)], n=3, eta=1.0, num_inference_steps=4)
    assert out.ledger.rows == 1 + 2 * 3 + 2 * 3 + 3
    chosen = steered(PIPE, [code(bright, 1), guidance.cfg(3.0)], n=3, eta=1.0, generator=tiny.generator(5))
    plain = steered(PIPE, code(bright, 1), n=3, eta=1.0, guidance_scale=3.0, generator=tiny.generator(5))
    assert same(chosen.images, plain.images, 1e-5)


def test_outside_of_during_the_pipeline_guides_as_it_does():
    half = steered(PIPE, during(guidance.cfg(1.0), start=0.5), guidance_scale=3.0)
    assert half.ledger.rows == 2 * 2 + 1


def test_concepts_come_from_other_prompts():
    dog, cat = network("dog", guidance_scale=2.0).cond, network("a cat", guidance_scale=1.0).cond
    away = steered(PIPE, guidance.late_negative(3.0, dog, start=0.3))
    assert away.ledger.rows == 2 + 2 * 3
    assert not same(away.images, stock(PIPE, 3.0), 1e-3)
    none = steered(PIPE, guidance.late_negative(3.0, cat, erase=2.0, start=0.0))
    assert same(none.images, steered(PIPE, guidance.cfg(1.0)).images, 1e-5)
    assert steered(PIPE, guidance.sld(3.0, dog), n=2).ledger.rows == 3 * 2 * 3
    assert steered(PIPE, guidance.sega(3.0, [dog, cat], [5.0, -5.0]), n=2).ledger.rows == 4 * 2 * 3


MOMENTUM = {
    "apg": guidance.apg(3.0),
    "sld": guidance.sld(3.0, concept(0)),
    "sega": guidance.sega(3.0, [concept(0)], [2.0]),
    "diffusers": guidance.from_diffusers(theirs.AdaptiveProjectedGuidance(3.0, -0.5)),
}


@pytest.mark.parametrize("guide", MOMENTUM.values(), ids=MOMENTUM)
def test_momentum_belongs_to_the_run_and_the_particle(guide):
    once, again = guided(guide), guided(guide)
    assert torch.equal(once.x, again.x)
    four, two = (guided(guide, (1, 0), n=n, x=noise(2)).x for n in (4, 2))
    assert same(four.reshape(2, 4, 2)[:, :2], two.reshape(2, 2, 2))
    assert guided([guide, best_of_n(first)], (1, 0), n=3, x=None, denoiser=Classes(two_classes(torch.float32))).finished


@pytest.mark.parametrize("guide", MOMENTUM.values(), ids=MOMENTUM)
def test_momentum_refuses_a_search_between_steps_and_second_evaluations(guide):
    for common in (True, False):
        for chain in ([guide, code(first, 3, common_start=common)], [code(first, 3, common_start=common), guide]):
            with pytest.raises(ValueError, match=r"a search has put others in their places.*best_of_n"):
                guided(chain, n=3)
    with pytest.raises(ValueError, match=r"asked once a step.*asked again at progress"):
        guided(guide, solver=heun())


def test_momentum_in_exact_batches_sees_all_particles():
    ask = {"n": 3, "eta": 1.0, "guidance_scale": 2.0, "generator": tiny.generator(), **ASK}
    out = Steered(PIPE, guidance.apg(3.0), exact=True)("a cat", **ask)
    assert out.ledger.rows == 2 * 3 * 3


def test_gradients_flow_through_guidance():
    guide, x = guidance.apg(3.0, eta=0.3, norm=1.0, momentum=0.0), noise(4).requires_grad_()
    denoise = guide.wrap(Classes(two_classes()))
    assert torch.autograd.gradcheck(lambda x: denoise(x, vp(20)[9], asking(1, 1, 0, 0)), x)


def test_its_repr_is_its_configuration():
    assert repr(guidance.cfg(3.0)) == (
        "Guide(rule=Cfg(weight=3.0), space='sample', when=Interval(progress=(0.0, 1.0), noise=(0.0, inf)), weak=None)"
    )
    assert "AdaptiveProjectedGuidance(guidance_scale=2.0, adaptive_projected_guidance_momentum=-0.5" in repr(
        guidance.apg(3.0)
    )


def test_a_missing_branch():
    with pytest.raises(ValueError, match="guidance_scale > 1"):
        steered(PIPE, guidance.cfg(3.0), guidance_scale=1.0)
    with pytest.raises(ValueError, match=r"nag needs .* two branches.*guidance_scale > 1"):
        steered(PIPE, guidance.nag(PIPE.unet), guidance_scale=1.0)
    with pytest.raises(ValueError, match="Two Guides in one chain"):
        steered(PIPE, [guidance.cfg(3.0), guidance.cfg(2.0)])
    for cond in (None, {}, torch.zeros(64)):
        with pytest.raises(ValueError, match=r"needs conditioning.*cond=denoiser_of"):
            guided(guidance.cfg(3.0), cond=cond)


def test_concepts_of_another_network():
    with pytest.raises(ValueError, match=r"a concept holds \{'class': \(\)\}, but the network takes encoder_hidden"):
        steered(PIPE, guidance.sld(3.0, concept(0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guide("cfg"), r"Guide\('cfg'\): expected a Rule.*cfg and apg"),
        (lambda: Guide(Cfg(3.0), "x0"), "space 'x0'; expected one of .*'sample'"),
        (lambda: Interval((0.5, 0.5)), "start < stop"),
        (lambda: guidance.interval(guidance.cfg(3.0), noise=(2.0, 1.0)), "low < high"),
        (lambda: guidance.cfg_pp(7.5, vp(10)), r"no guidance scale.*0\.6"),
        (lambda: guidance.sega(3.0, [concept(0)], [1.0, 2.0]), "1 concepts and 2 scales"),
        (lambda: guidance.seg(PIPE.unet, 3.0, sigma=0.0), "sigma > 0"),
        (lambda: guidance.pag(PIPE.unet, 3.0, layers="middle"), r"'middle'.*mid_block\.attentions\.0"),
        (
            lambda: guidance.slg(PIPE.unet, 3.0, r"\.7$"),
            r"no name of a transformer block.*mid_block\.attentions\.0\.tr",
        ),
        (lambda: guidance.nag(PIPE.unet, 0.5), "scale >= 1"),
        (lambda: guidance.nag(PIPE.vae), "no name of a cross-attention module"),
        (lambda: guidance.from_diffusers("apg"), "no diffusers guider; expected one of ClassifierFreeGuidance"),
        (lambda: guidance.from_diffusers(theirs.ClassifierFreeGuidance(3.0, start=0.2)), "guidance.interval"),
        *(
            (lambda guider=guider: guidance.from_diffusers(guider), f"{type(guider).__name__} perturbs.*pag, seg")
            for guider in (
                theirs.PerturbedAttentionGuidance(perturbed_guidance_layers=[0]),
                theirs.SmoothedEnergyGuidance(seg_guidance_layers=[0]),
                theirs.SkipLayerGuidance(skip_layer_guidance_layers=[0]),
                theirs.AutoGuidance(auto_guidance_layers=[0], dropout=0.1),
                theirs.LTX2Guidance(),
            )
        ),
    ],
)
def test_bad_configuration(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_cfg_pp_in_a_run_that_it_was_not_made_for():
    with pytest.raises(ValueError, match="schedule of 10 steps"):
        guided(guidance.cfg_pp(0.6, vp(10)), schedule=vp(20), solver=ddim(0.0))
    with pytest.raises(ValueError, match=r"eta = 0\.0, but the solver of this run has eta = 1"):
        guided(guidance.cfg_pp(0.6, vp(20)), schedule=vp(20))
    with pytest.raises(ValueError, match="no first-order transition"):
        guided(guidance.cfg_pp(0.6, vp(20)), schedule=vp(20), solver=dpmpp_2m())
    pipe = pipeline()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    d = denoiser_of(pipe, "a cat", num_inference_steps=3, guidance_scale=2.0)
    with pytest.raises(ValueError, match="no first-order transition"):
        steered(pipe, guidance.cfg_pp(0.6, d.schedule))


def test_frequencies_need_pictures():
    with pytest.raises(ValueError, match=r"expected pictures or latents \(b, c, h, w\), got \(64, 2\)"):
        guided(guidance.frequency_decoupled(2.0, 5.0))
