"""What single families need: their guidance, embeddings, masks and decoders; and what is refused."""

from typing import Any

import pytest
import tiny
import tiny_families
import torch
from family_cases import MASKS, MATRIX, PICTURES, PROMPTS, SIZE, cells, some
from solver_cases import CASES, close
from test_matrix import Through
from tiny import Watch

from steer.diffusion.controllers import best_of_n
from steer.diffusion.loop import finished, sample
from steer.diffusion.pipelines import Steered, denoiser_of
from steer.diffusion.pipelines.family import pictures
from steer.diffusion.pipelines.pixart import PIXART_SIGMA
from steer.diffusion.pipelines.sdxl import STABLE_DIFFUSION_XL
from steer.diffusion.solve import ddim

PIXART = cells("pixart", tiny_families.pixart, CASES, "ddim-eta", SIZE["pixart"])["pixart-ddim-eta"]
BOTH = [
    (name, MATRIX[name]) for name in ("sdxl-ddim-eta", "sd3-euler", "sd3-euler-eta", "sd3.5-euler-eta", "flux-euler")
]
BOTH += [(name, MATRIX[name]) for name in ("flux-cfg-euler-eta", "sana-euler-eta", "lumina2-euler-eta")]
BOTH += [("pixart-ddim-eta", PIXART)]


@pytest.mark.parametrize("case", [case for _, case in BOTH], ids=[name for name, _ in BOTH])
def test_both_drivers_agree(case):
    d = denoiser_of(case.pipe(), PROMPTS, **case.ask())
    g = tiny.generator()
    torch.randn(d.x.shape, generator=g)  # the pipeline drew its first noise here, and d.x is that
    solver = ddim(1.0 if case.noisy else 0.0)
    ours = finished(sample(d, d.shape, d.schedule, cond=d.cond, prompts=d.prompts, x=d.x, solver=solver, generator=g))
    assert close(ours.x, case.plain)
    assert ours.run.ledger.rows == case.branches * len(PROMPTS) * case.steps
    assert torch.allclose(d.decode(case.plain), case.run(case.pipe(), output_type="pt"), atol=1e-6) or case.eta


@some("sd3-euler", "flux-cfg-euler")
@torch.no_grad()
def test_the_branches_of_guidance_can_be_asked_alone(case):
    d = denoiser_of(case.pipe(), PROMPTS, **case.ask())
    free, asked = (d(d.x, d.schedule[1], {k: v[:, [block]] for k, v in d.cond.items()}) for block in (0, 1))
    weight = case.call.get("true_cfg_scale", 3.0)
    assert not close(free, asked)
    assert close(free + weight * (asked - free), d(d.x, d.schedule[1], d.cond))


def given_embeddings(case) -> dict[str, Any]:
    pipe = case.pipe()
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    length = {"max_sequence_length": case.call["max_sequence_length"]}
    with torch.no_grad():
        if "Flux" in type(pipe).__name__:
            embeds, pooled, _ = pipe.encode_prompt(PROMPTS, None, **length)
            return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        return dict(zip(names, pipe.encode_prompt(PROMPTS, None, None, **length)))


@some("sd3-euler", "flux-euler")
@pytest.mark.parametrize("images", [1, 2])
def test_embeddings_in_place_of_prompts(case, images):
    """SD3 and FLUX do not repeat them for the images of a prompt."""
    ask = case.ask(output_type="latent", num_images_per_prompt=images)
    of_prompts = Steered(case.pipe(), [], exact=True)(PROMPTS, n=2, **ask)
    ask = {**case.ask(output_type="latent", num_images_per_prompt=images), **given_embeddings(case)}
    of_embeddings = Steered(case.pipe(), [], exact=True)(n=2, **ask)
    assert torch.equal(of_embeddings.candidates.latents, of_prompts.candidates.latents)
    assert of_embeddings.candidates.latents.shape[:2] == (2 * images, 2)
    asked = denoiser_of(case.pipe(), PROMPTS, **case.ask())
    told = denoiser_of(case.pipe(), **case.ask(**given_embeddings(case)))
    assert all(torch.equal(asked.cond[name], told.cond[name]) for name in asked.cond)
    assert told.prompts == ("", "")


@some("flux-euler")
@pytest.mark.parametrize("n", [6, 8], ids=["text", "picture"])
def test_tokens_that_are_as_many_as_the_rows_are_no_rows(case, n):
    """12 tokens of text and 16 of the picture, whose places are the same for every row."""
    assert torch.equal(case.attached(n=n, exact=True)[0][[0, n]], case.plain)


@some("sd-inpaint-euler-a", "sdxl-inpaint-9-euler-a")
@pytest.mark.parametrize("generators", ["one", "list"])
def test_every_image_keeps_its_picture_and_its_mask(case, generators):
    given = {"image": PICTURES, "mask_image": MASKS}

    def fresh(of_particles):
        if generators == "one":
            return tiny.generator()
        firsts = [tiny.generator(seed) for seed in (5, 6)]
        return [firsts[0], tiny.generator(7), firsts[1], tiny.generator(8)] if of_particles else firsts

    plain = case.run(case.pipe(), generator=fresh(False), **given)
    two, _ = case.attached(n=2, exact=True, generator=fresh(True), **given)
    assert torch.equal(two[[0, 2]], plain)
    assert not torch.equal(case.run(case.pipe(), generator=fresh(False)), plain)


def test_the_last_look_of_inpainting_sees_the_picture_outside_of_the_mask():
    case, watch = MATRIX["sd-inpaint-euler-a"], Watch()
    latents, session = case.attached([watch], 2)
    assert torch.equal(watch.states[-1].x, latents)
    kept = latents[:, :, :, :4]
    assert torch.equal(kept, kept[:1].expand_as(kept))
    assert len(latents[:, :, :, 4:].unique(dim=0)) == 4
    assert torch.equal(session.candidates.latents.flatten(0, 1), latents)


def test_a_run_that_goes_on_from_latents_shares_its_start():
    case = MATRIX["sdxl-img2img-ddim-eta"]
    given = {"image": torch.randn(1, 4, 8, 8, generator=tiny.generator()), "denoising_start": 0.5}
    plain = case.run(case.pipe(), **given)
    three, session = case.attached(exact=True, **given)
    assert torch.equal(three[[0, 3]], plain)
    assert session.ledger.rows == 2 * 2 * (3 * (session.calls - 1) + 1)


def test_a_decoder_that_overflows_in_half_precision():
    pipe, seen = tiny_families.made(tiny_families.sdxl, CASES["ddim"].make()), []
    pipe.vae.half().register_to_config(force_upcast=True)
    pipe.vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.no_grad():
        pictures(pipe, STABLE_DIFFUSION_XL, pipe.vae.decode, {}, torch.zeros(1, 4, 8, 8, dtype=torch.float16))
    assert seen == [torch.float32]
    assert pipe.vae.dtype == torch.float16


def test_a_decoder_with_means_of_its_own():
    pipe, case = tiny_families.made(tiny_families.sdxl, CASES["ddim"].make()), MATRIX["sdxl-euler-a"]
    pipe.scheduler = case.make()
    pipe.vae.register_to_config(latents_mean=[0.1, 0.2, -0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 1.5])
    plain = case.run(pipe, output_type="pt")
    assert torch.equal(Steered(pipe, [], exact=True)(PROMPTS, n=2, **case.ask(output_type="pt")).images, plain)
    pipe.vae.register_to_config(latents_mean=None)
    assert not torch.equal(case.run(pipe, output_type="pt"), plain)


def test_pictures_rendered_in_a_known_size_are_cut_to_the_size_asked():
    pipe, raw = PIXART.pipe(), torch.rand(1, 3, 32, 16, generator=tiny.generator())
    given = {"use_resolution_binning": True, "orig_height": 12, "orig_width": 10}
    assert PIXART_SIGMA.finish(pipe, raw, "pt", given).shape == (1, 3, 12, 10)
    whole = PIXART_SIGMA.finish(pipe, raw, "pt", {**given, "use_resolution_binning": False})
    assert torch.allclose(whole, raw / 2 + 0.5)


@pytest.mark.parametrize(
    ("name", "controllers", "call", "words"),
    [
        ("sdxl-euler-a", [], {"denoising_end": 0.5}, "denoising_end = 0.5"),
        ("sdxl-img2img-ddim-eta", [], {"latents": torch.zeros(4, 4, 8, 8)}, "leave out `latents`"),
        ("sd3-euler", [Through()], {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 1.0}, "skip_guidance"),
        ("lumina2-euler", [Through()], {"cfg_trunc_ratio": 0.5}, "cfg_trunc_ratio = 0.5"),
        ("sd-inpaint-euler-a", [], {"prompt": ["a", "b", "c"], "mask_image": MASKS}, "2 references for 3 images"),
    ],
)
def test_what_cannot_work(name, controllers, call, words):
    case = MATRIX[name]
    with pytest.raises(ValueError, match=words):
        case.attached(controllers, 2, **call)


def test_an_overlay_needs_the_pipelines_own_output():
    case = MATRIX["sd-inpaint-euler-a"]
    with pytest.raises(ValueError, match="padding_mask_crop = 4"):
        Steered(case.pipe(), best_of_n(lambda pictures, prompts: pictures.mean()))(
            PROMPTS, n=2, **case.ask(padding_mask_crop=4)
        )


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("sd3-euler", {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 1.0}),
        ("lumina2-euler", {"cfg_trunc_ratio": 0.5}),
    ],
)
def test_a_search_alone_leaves_the_pipelines_guidance_to_it(name, call):
    case = MATRIX[name]
    plain = case.run(case.pipe(), **call)
    assert torch.equal(case.attached(exact=True, **call)[0][[0, 3]], plain)
    assert not torch.equal(case.plain, plain)
