"""Laws of inpainting, of pipelines that fill, and of what they are called with."""

import diffusers
import pytest
import tiny
import tiny_families
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from test_edit import CASES, STEPS, made, near, recorded, run, white

import steer
from steer.diffusion.controllers import edit
from steer.diffusion.controllers.edit.blended import mask_like


def hole(pipe, options):
    """A mask (h, w) of the picture."""
    side = options.get("height", 16)
    mask = torch.zeros(side, side)
    mask[side // 4 : side // 2, side // 4 :] = 1
    return mask


@pytest.mark.parametrize("family", CASES)
def test_inpainting_keeps_all_else(family):
    """Outside of the mask the source, bit for bit; a full mask is no control; an empty one is the source."""
    pipe, _, options = made(family)
    (source, plain), mask = recorded(family, 5), hole(pipe, options)
    for start in (source, source.latents):
        inside = mask_like(mask, source.latents)
        found = run(pipe, edit.inpaint(mask, start), options)
        assert 0 < inside.float().mean() < 1
        assert torch.equal(torch.where(inside, 0, found.images), torch.where(inside, 0, source.latents))
        assert not near(torch.where(inside, found.images, 0), torch.where(inside, source.latents, 0), 1e-2)
        assert found.ledger.rows == plain.ledger.rows
        assert torch.equal(run(pipe, edit.inpaint(torch.zeros_like(mask), start), options).images, source.latents)
        assert torch.equal(run(pipe, edit.inpaint(torch.ones_like(mask), start), options).images, plain.images)


def test_a_fill_is_where_the_hole_starts():
    """Up to there nothing is asked; then x in the hole is the fill, noised by the run's own noise."""
    pipe, _, options = made("sd")
    source, _ = recorded("sd", 5)
    fill, mask = torch.full_like(source.latents, 0.3), torch.ones(8, 8)
    watch = tiny.Watch()
    out = run(pipe, [edit.inpaint(mask, source.latents, fill, until=0.5), watch], options)
    first, *_, third = (watch.states[k] for k in (0, 1, 2))
    assert out.ledger.rows == 2 * (STEPS - 2)  # progress 0 and 1/3 cost nothing
    noise = (first.x - first.level.alpha * fill) / first.level.sigma
    torch.testing.assert_close(third.x, third.level.alpha * fill + third.level.sigma * noise, atol=1e-5, rtol=1e-4)


def test_inpainting_searches_and_avoids():
    """One chain: a concept is turned away from late, the hole searched, all else the source in every candidate."""
    pipe, network, options = made("sd")
    source, _ = recorded("sd", 5)
    concept = steer.denoiser_of(pipe, "bird", num_inference_steps=STEPS).cond
    avoid = steer.guidance.late_negative(3.0, concept)
    mask, search = hole(pipe, options), steer.code(white, block=1)
    chain = [avoid, edit.inpaint(mask, source.latents), search]
    out = run(pipe, chain, options, n=3)
    inside = mask_like(mask, source.latents)
    every = out.candidates.latents.flatten(0, 1)
    assert torch.equal(torch.where(inside, 0, every), torch.where(inside, 0, source.latents).expand_as(every))
    assert out.ledger.rows == 2 * 1 + 3 * 3 + 3 * 3  # one noise for all, and from the second step on the concept
    plain = run(pipe, [steer.guidance.cfg(3.0), *chain[1:]], options, n=3)
    assert not near(out.images, plain.images, 1e-4)
    looks = edit.masactrl(network, source, 0.0)
    assert run(pipe, [avoid, looks, edit.inpaint(mask, source)], options).ledger.rows == 2 * 2 + 3 * 2 + 3 * 2


def test_a_sheet_beside_a_reference():
    """FLUX.1 Fill's 384 values a token: every flow-matching controller runs, and the left half is the reference."""
    pipe = tiny_families.made(tiny_families.flux_fill_384, FlowMatchEulerDiscreteScheduler())
    assert isinstance(pipe, diffusers.FluxFillPipeline)
    reference = torch.rand(1, 3, 32, 16, generator=tiny.generator())
    sheet = edit.side_by_side(reference)
    options = {"num_inference_steps": 2, "max_sequence_length": 12, "output_type": "pt", **sheet.arguments}
    plain = pipe("a cat", generator=tiny.generator(), **options).images
    assert plain.shape == (1, 3, 32, 32)
    assert torch.equal(steer.Steered(pipe, [])("a cat", n=1, generator=tiny.generator(), **options).images, plain)
    source = steer.record(pipe, "a cat", generator=tiny.generator(), **options)
    pictures = {
        "code": [steer.code(white, block=1)],
        "smc": [steer.smc(white, beta=1.0, every=1)],
        "freedom": [steer.gradients.freedom(white, 0.1)],
        "p2p": [edit.prompt_to_prompt(pipe.transformer, source)],
        "masactrl": [edit.masactrl(pipe.transformer, source), steer.best_of_n(white)],
        "slg": [steer.guidance.slg(pipe.transformer, 1.0, r"^transformer_blocks\.0$", stop=1.0)],
    }
    for controllers in pictures.values():
        n = 1 if controllers is pictures["freedom"] else 2
        steered = steer.Steered(pipe, controllers, eta=1.0)
        found = steered("a dog", n=n, generator=tiny.generator(), **options).images
        assert torch.equal(sheet.pasted(found)[..., :16], reference)
        assert torch.equal(sheet.pasted(found)[..., 16:], sheet.filled(found))
        assert torch.equal(sheet.filled(found), found[..., 16:])
        assert found.isfinite().all()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_task_embeddings_go_to_an_inpainting_pipeline(weight):
    pipe = tiny_families.made(tiny_families.sd_inpaint, DDIMScheduler())
    words = {text: pipe.encode_prompt(text, "cpu", 1, True, "") for text in ("cat", "dog", "shape")}
    task, other = ((words[a][0], words[b][0]) for a, b in (("cat", "dog"), ("shape", "cat")))
    mixed = edit.task_embeds(task, other, weight)
    for found, one in zip(mixed.values(), task if weight else other):
        torch.testing.assert_close(found, one)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    given = {"image": torch.rand(1, 3, 16, 16), "mask_image": mask, "height": 16, "width": 16, "guidance_scale": 10.0}
    given |= {"num_inference_steps": 2, "output_type": "pt"}
    texts = ("cat", "dog") if weight else ("shape", "cat")
    by_words = pipe(texts[0], negative_prompt=texts[1], generator=tiny.generator(), **given).images
    torch.testing.assert_close(pipe(**mixed, generator=tiny.generator(), **given).images, by_words)


def test_bad_masks_sheets_and_embeddings_are_refused():
    pipe, _, options = made("sd")
    latents = torch.zeros(1, 4, 8, 8)
    for mask in (torch.full((8, 8), 0.5), torch.zeros(1, 8, 8)):
        with pytest.raises(ValueError, match="1 where to repaint"):
            edit.inpaint(mask, latents)
    with pytest.raises(ValueError, match="expected until"):
        edit.inpaint(torch.zeros(8, 8), latents, until=2.0)
    with pytest.raises(ValueError, match="source of 2 pictures"):
        edit.inpaint(torch.zeros(8, 8), torch.zeros(2, 4, 8, 8))
    for mask in (torch.zeros(8, 12), torch.zeros(12, 12)):
        with pytest.raises(ValueError, match="whole number of times"):
            run(pipe, edit.inpaint(mask, latents), options)
    with pytest.raises(ValueError, match="the size of the run"):
        run(pipe, edit.inpaint(torch.zeros(8, 8), torch.zeros(1, 4, 4, 4)), options)
    for reference in (torch.zeros(1, 3, 20, 16), torch.zeros(3, 16, 16), torch.full((1, 3, 16, 16), 2.0)):
        with pytest.raises(ValueError, match=r"expected \(r, 3, h, w\)"):
            edit.side_by_side(reference)
    with pytest.raises(ValueError, match=r"expected \(b, 3, 16, 32\)"):
        edit.side_by_side(torch.zeros(1, 3, 16, 16)).filled(torch.zeros(1, 3, 16, 16))
    one = torch.zeros(1, 4, 8)
    with pytest.raises(ValueError, match="fit = 2"):
        edit.task_embeds((one, one), fit=2.0)
    with pytest.raises(ValueError, match="pairs of equal shapes"):
        edit.task_embeds((one, one), (one, torch.zeros(1, 5, 8)))


@pytest.mark.parametrize("size", [(12, 8), (8, 8)])
def test_packed_masks_are_those_of_the_latents(size):
    """As FLUX packs: the mask of packed latents is the packed mask."""
    pack = diffusers.FluxPipeline._pack_latents
    mask = (torch.rand(*size, generator=tiny.generator()) > 0.5).float()
    latents = torch.zeros(1, 3, *size)
    packed = pack(latents, 1, 3, *size)
    expected = pack(mask_like(mask, latents).expand_as(latents).float(), 1, 3, *size)
    assert torch.equal(mask_like(mask, packed).float(), expected)
    fine = mask.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(mask_like(fine, packed).float(), expected)
