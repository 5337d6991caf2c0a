"""Laws of composition: losses against values by hand, words and tokens, and controllers on every family."""

import math
from dataclasses import replace
from functools import partial

import pytest
import tiny
import tiny_families
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny import Watch

import steer
from steer import Steered, guidance
from steer.diffusion.controllers import compose
from steer.diffusion.controllers.compose import Fault, Reader, Relation, constraints, losses, parse, positions
from steer.diffusion.controllers.compose.tokens import streams
from steer.diffusion.controllers.compose.verify import attended, crop
from steer.diffusion.loop import finished, sample

PROMPT = "a cat and dog"
ASK = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 3.0}


def exact(*maps):
    """(1, maps, h, w) in float64."""
    return torch.tensor(maps, dtype=torch.float64)[None]


def near(found, *expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


LEFT, RIGHT = [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]


# losses


def test_shares_of_attention_are_a_softmax_over_tokens():
    shares = losses.token_softmax(exact([[0.02]], [[0.01]], [[0.0]]), 100.0)
    total = math.exp(2) + math.exp(1) + 1
    near(shares.flatten(), math.exp(2) / total, math.exp(1) / total, 1 / total)


def test_the_blur_is_a_gaussian():
    spot = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    spot[0, 0, 2, 2] = 1
    side = math.exp(-2) / (1 + 2 * math.exp(-2))
    middle = 1 - 2 * side
    near(losses.blur(spot)[0, 0, 2, 1:4], side * middle, middle**2, side * middle)


def test_excite_is_the_least_attended_peak():
    near(losses.excite(exact([[0.8, 0.1], [0.1, 0.0]], [[0.1, 0.3], [0.0, 0.2]])), 0.7)


def test_separate_adds_what_is_shared():
    maps = exact([[0.8, 0.1], [0.1, 0.0]], [[0.1, 0.3], [0.0, 0.2]])
    near(losses.shared(maps), 0.2 / 1.6)
    near(losses.separate(maps), (0.7 + 0.125) / 2)
    near(losses.shared(exact(LEFT, LEFT, RIGHT)), 0.5 / 3)
    near(losses.separate(exact(LEFT)), 0.0)


def test_retention_compares_with_the_box():
    masks = losses.box_masks([(0.0, 0.0, 0.5, 1.0)], 2, 2)
    assert masks.tolist() == [[[1, 0], [1, 0]]]
    near(losses.retention(exact([[0.5, 0.5], [0.0, 0.0]]), masks), 1 - 0.5 / 3)
    near(losses.retention(exact([[1.0, 0.0], [1.0, 0.0]]), masks), 0.5)


def test_overlap_and_mixing():
    near(losses.mixing(exact([[1.0, 0.5], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]])), 0.5 / 2.5)
    near(losses.mixing(exact(LEFT, RIGHT)), 0.0)
    near(losses.mixing(exact(LEFT, LEFT, LEFT)), 1.5)
    scaled = 3 * exact(LEFT) + 2  # min-max normalised: scale and offset do not count
    near(losses.overlap(scaled, exact(LEFT)).flatten(), 0.5)


def test_attribute_is_one_minus_overlap():
    near(losses.attribute(exact(LEFT, LEFT), exact(LEFT, RIGHT)), 0.5 + 1.0)


def test_missing_wants_every_entity_to_stand_out():
    near(losses.missing(exact(LEFT, RIGHT)), 0.0)
    nearly = exact([[0.3, 0.2], [0.2, 0.3]], [[0.25, 0.25], [0.25, 0.25]])
    near(losses.missing(nearly), 2 * (1 - 1000 / 256 * 0.2))
    near(losses.gaps(nearly[:, :1], nearly[:, 1:], 100.0).flatten(), 100 / 256 * 0.2)
    near(losses.missing(exact([[0.3, 0.1], [0.0, 0.0]])), 0.7)  # nobody to stand out from


def test_missing_has_the_papers_constant_on_its_grid_and_the_same_threshold_on_any():
    maps = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=tiny.generator())
    hat, expected = 1000 * maps / maps.sum((-1, -2), keepdim=True), []
    for row in hat:
        g = [sum(max(0.0, float((a - b).max())) for j, b in enumerate(row) if j != i) for i, a in enumerate(row)]
        expected.append(sum(max(0.0, 1 - one / 2) for one in g))
    near(losses.missing(maps), *expected)
    larger = maps.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(losses.missing(larger), losses.missing(maps))


@pytest.mark.parametrize(("kind", "expected"), [("left of", -8.0), ("right of", 8.0), ("above", -4.0), ("below", 4.0)])
def test_spatial_compares_centres_in_units_of_a_16_grid(kind, expected):
    one, other = torch.zeros(2, 4, 4, dtype=torch.float64)
    one[1, 0], other[2, 2] = 1.0, 1.0  # (x, y) = (0, 1) and (2, 2) on a grid of 4
    near(losses.spatial(torch.stack([one, other])[None], [(kind, 0, 1)]), 1 / (1 + math.exp(-expected)))


@pytest.mark.parametrize("box", [(0.5, 0.0, 0.5, 1.0), (-0.1, 0.0, 0.5, 1.0), (0.0, 0.0, 0.01, 0.01)])
def test_boxes_lie_in_the_picture(box):
    with pytest.raises(ValueError, match="expected 0 <= left < right <= 1"):
        losses.box_masks([box], 4, 4)


# words and tokens

NAMES = ("fox", "house", "red apple", "hot dog", "Santa Claus", "t-shirt")
SAID = [
    ("a red apple on the left of a wooden chair", (), ["red apple", "wooden chair"], [("left of", 0, 1)]),
    ("a photo of a small dog and a red and black cat", (), ["small dog", "red black cat"], [("and", 0, 1)]),
    ("two old fire engines below a dark-blue kite", (), ["old fire engines", "dark-blue kite"], [("below", 0, 1)]),
    ("the apple is red and the car is blue", (), ["red apple", "blue car"], [("and", 0, 1)]),
    ("a cat wearing a hat, in the style of Monet, on a green background", (), ["cat", "hat"], []),
    (
        "a cat is on top of a box to the right of a bed",
        (),
        ["cat", "box", "bed"],
        [("above", 0, 1), ("right of", 1, 2)],
    ),
    ("an orange and a pear", (), ["orange", "pear"], []),
    ("fox to the left of house, twemoji style", NAMES, ["fox", "house"], [("left of", 0, 1)]),
    ("a green hot dog, noto style, on a blue background", NAMES, ["green hot dog"], []),
    ("Santa Claus above red apple, fluent-flat style", NAMES, ["Santa Claus", "red apple"], [("above", 0, 1)]),
    ("T-shirt and red apple", NAMES, ["T-shirt", "red apple"], [("and", 0, 1)]),
]


@pytest.mark.parametrize(("prompt", "names", "entities", "relations"), SAID)
def test_prompts_are_read(prompt, names, entities, relations):
    found = parse(prompt, names)
    assert [str(entity) for entity in found.entities] == entities
    assert [(r.kind, r.one, r.other) for r in found.relations] == relations


def test_every_caption_of_the_emoji_world_is_read():
    from steer.zoo.data import RELATIONS, captions, scene_caption

    names = tuple(row["name"] for row in captions())
    kinds = dict(zip(RELATIONS, ("left of", "above", "and"), strict=True))
    for k, (a, b) in enumerate(zip(names, names[1:])):
        relation = RELATIONS[k % 3]
        found = parse(scene_caption(a, relation, b, "noto"), names)
        assert [str(entity) for entity in found.entities] == [a, b]
        assert found.relations == (Relation(kinds[relation], 0, 1),)


def test_constraints_come_from_names_too():
    prompt = "a red apple above a red house"
    found = constraints(prompt, {"apple": ["red"], "House": ["red"]}, [("apple", "above", "House")])
    assert [entity.attributes[0].at for entity in found.entities] == [2, 20]
    assert found == parse(prompt)


def test_what_cannot_be_read_is_refused():
    for empty in ("", "  \n"):
        with pytest.raises(ValueError, match="the prompt is empty"):
            parse(empty)
    for nothing in ("noto style", "on a blue background"):
        with pytest.raises(ValueError, match=r"no entity was found.*parse\(prompt, names\)"):
            parse(nothing)
    with pytest.raises(ValueError, match="no entity was found"):
        parse("a bicycle", NAMES)
    with pytest.raises(ValueError, match="'dog' does not occur"):
        constraints("a cat", ["dog"])
    with pytest.raises(ValueError, match="none of the entities"):
        constraints("a cat", ["cat"], [("cat", "above", "dog")])
    with pytest.raises(ValueError, match="expected a kind of"):
        constraints("a cat and dog", ["cat", "dog"], [("cat", "near", "dog")])
    with pytest.raises(ValueError, match="does not stand there"):
        replace(parse("a cat"), prompt="the cat")
    with pytest.raises(ValueError, match="terms"):
        compose.Align(("presence",))


def t5():
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0)]
    pieces += [(piece, -1.0) for piece in ("▁a", "▁red", "▁app", "le", "▁and", "▁above")]
    return T5TokenizerFast(vocab=pieces + [(letter, -9.0) for letter in tiny.LETTERS], extra_ids=0)


def test_tokens_are_found_in_clip_and_t5():
    prompt = "a red apple and apple"
    (first, second), clip = parse(prompt).entities, tiny.tokenizer()
    assert positions(t5(), prompt, first.name) == (2, 3)
    assert positions(t5(), prompt, second.name) == (5, 6)
    assert positions(t5(), prompt, first.attributes[0]) == (1,)
    assert positions(clip, prompt, first.name) == (5, 6, 7, 8, 9)  # a letter a token, after the start token
    assert positions(clip, prompt.upper(), first.name) == (5, 6, 7, 8, 9)
    with pytest.raises(ValueError, match=r"no token belongs to .*<\|startoftext\|>"):
        positions(clip, long := "a red apple and a green pear", parse(long).entities[1].name)  # cut off at 16 tokens
    with pytest.raises(ValueError, match="fast tokenizer"):
        positions(object(), prompt, first.name)


def test_streams_follow_one_another():
    one, two = streams((tiny.tokenizer(), t5()), 40)
    text = "a red apple"
    assert (one.kept(text), two.kept(text)) == (slice(1, 15), slice(16, 39))
    assert (one.kept(text, False), two.kept(text, False)) == (slice(1, 10), slice(16, 20))  # its words alone
    entity = parse(text).entities[0]
    assert two.positions("a red apple", entity.name) == (18, 19)
    with pytest.raises(ValueError, match="max_sequence_length"):
        streams(tiny.tokenizer(), 8)[0].positions("a red apple", entity.name)
    with pytest.raises(ValueError, match="too few"):
        streams((tiny.tokenizer(), t5()), 16)


# controllers

FAMILIES = {
    "sd": (tiny.pipeline, DDIMScheduler, "tokenizer"),
    "sdxl": (tiny_families.sdxl, DDIMScheduler, "tokenizer"),
    "sd3": (tiny_families.sd3, FlowMatchEulerDiscreteScheduler, "tokenizer"),
    "flux": (tiny_families.flux, FlowMatchEulerDiscreteScheduler, "tokenizer_2"),
    "pixart": (tiny_families.pixart, DDIMScheduler, "tokenizer"),
    "sana": (tiny_families.sana, FlowMatchEulerDiscreteScheduler, "tokenizer"),
}


def pipeline():
    return tiny.pipeline(DDIMScheduler(clip_sample=False))


def attributes(network) -> list:
    return [(sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]


def run(pipe, controllers=(), prompt=PROMPT, n=1, eta=None, exact=False, chunk=None, **kwargs):
    steered = Steered(pipe, controllers, eta, exact, chunk)
    return steered(prompt, n=n, generator=tiny.generator(), **{**ASK, **kwargs})


@pytest.mark.parametrize("family", FAMILIES)
def test_controllers_on_every_family(family):
    build, scheduler, words = FAMILIES[family]
    pipe = tiny_families.made(build, scheduler())
    network, tokenizer = (pipe.unet if hasattr(pipe, "unet") else pipe.transformer), getattr(pipe, words)
    size = tiny_families.SIZE.get(family, {})
    plain = run(pipe, (), **size)
    before = attributes(network)  # a pipeline leaves attributes of its own at its first call
    assert torch.equal(run(pipe, compose.aligned(network, tokenizer, 0.0), **size).images, plain.images)
    moved = run(pipe, compose.aligned(network, tokenizer, 3.0), **size)
    assert torch.isfinite(moved.images).all()
    assert not torch.equal(moved.images, plain.images)
    assert (moved.ledger.rows, moved.ledger.backward_rows) == (plain.ledger.rows + 2, 2)
    learnt = run(pipe, compose.saga(network, tokenizer, iterations=1, noises=2, lr=1.0), **size)
    assert (learnt.ledger.rows, learnt.ledger.backward_rows) == (plain.ledger.rows + 2, 2)
    assert attributes(network) == before


def test_families_without_such_attention_say_so():
    pipe = tiny_families.made(tiny_families.lumina2, FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="no cross or joint-attention"):
        compose.aligned(pipe.transformer, pipe.tokenizer)


def test_an_exception_leaves_the_network_as_it_was():
    pipe = pipeline()
    before, plain = attributes(pipe.unet), run(pipe)

    def fail(seen):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        run(pipe, compose.saga(pipe.unet, pipe.tokenizer, loss=fail))
    assert attributes(pipe.unet) == before
    assert torch.equal(run(pipe).images, plain.images)


def test_each_prompt_and_particle_is_its_own():
    """A batch of prompts with different entities, in exact, chunked and plain batches, is the prompts one by one."""
    pipe, prompts = pipeline(), [PROMPT, "a red fox"]
    steps = compose.aligned(pipe.unet, pipe.tokenizer, 3.0)
    start = torch.randn(2, 4, 8, 8, generator=tiny.generator())
    alone = [run(pipe, steps, text, latents=x[None]).images[0] for text, x in zip(prompts, start)]
    for n, how in ((1, {}), (3, {"eta": 1.0, "chunk": 2}), (1, {"exact": True})):
        asked = {**how, "eta": None} if n == 1 else how
        found = run(pipe, steps, prompts, n=n, latents=start, **asked)
        if n == 1:
            torch.testing.assert_close(found.images, torch.stack(alone), atol=1e-4, rtol=1e-4)
        assert found.ledger.backward_rows == 2 * n * 2


def test_both_drivers_agree():
    pipe = pipeline()
    steps = [compose.saga(pipe.unet, pipe.tokenizer, iterations=2, noises=2, lr=1.0)]
    steps += [compose.attend_and_excite(pipe.unet, pipe.tokenizer, 2.0, thresholds={})]
    theirs = run(pipe, steps)
    asked = {name: ASK[name] for name in ("num_inference_steps", "guidance_scale")}
    d = steer.denoiser_of(pipe, PROMPT, generator=tiny.generator(), **asked)
    from steer.diffusion.solve import ddim

    with torch.no_grad():
        ours = finished(sample(d, d.shape, d.schedule, steps, cond=d.cond, prompts=d.prompts, x=d.x, solver=ddim(0.0)))
    torch.testing.assert_close(ours.x, theirs.images, atol=1e-3, rtol=1e-3)
    assert ours.run.ledger.rows == theirs.ledger.rows
    assert ours.run.ledger.backward_rows == theirs.ledger.backward_rows


def dark(pictures, prompts):
    return -pictures.mean((1, 2, 3))


def test_it_composes_with_guidance_before_it_and_search_after_it():
    pipe = pipeline()
    steps = compose.aligned(pipe.unet, pipe.tokenizer, 3.0)
    own = run(pipe, steps, guidance_scale=2.0)
    same = run(pipe, [guidance.cfg(2.0), steps])
    torch.testing.assert_close(same.images, own.images, atol=1e-4, rtol=1e-4)
    assert same.ledger.backward_rows == own.ledger.backward_rows == 2
    assert own.ledger.rows == 2 * 4 + 2
    assert same.ledger.rows == own.ledger.rows + 2 * 2  # x0 is found before the first controller looks, and once more
    with pytest.raises(ValueError, match="List guidance before"):
        run(pipe, [steps, guidance.cfg(2.0)])
    found = run(pipe, [guidance.pag(pipe.unet, 2.0, 1.0), steps, steer.code(dark, block=2)], n=3, eta=1.0)
    assert found.ledger.backward_rows == 3 * 2
    assert found.rewards is not None


def test_pruned_particles_are_read_once():
    pipe = pipeline()
    steps = compose.aligned(pipe.unet, pipe.tokenizer, 3.0)
    found = run(pipe, [steer.funnel(dark, (3, 1), block=1), steps], n=3, eta=1.0)
    assert found.ledger.backward_rows == 3 + 1


def test_a_signal_is_shared_and_noise_stays_the_particles_own():
    """x at the step is m + sigma eps; particle 0 does not see how many others there are."""
    pipe = pipeline()
    few, many = Watch(), Watch()
    make = partial(compose.saga, pipe.unet, pipe.tokenizer, at=0.25, iterations=3, noises=4, lr=2.0)
    alone = run(pipe, [make(), few])
    among = run(pipe, [make(), many], n=3, eta=1.0)
    assert alone.ledger.backward_rows == among.ledger.backward_rows == 3 * 4  # one distribution a prompt
    first, state = many.states[0], many.states[1]
    signal = state.x - state.level.sigma * first.x / first.level.sigma
    torch.testing.assert_close(signal, signal[:1].expand_as(signal), atol=1e-5, rtol=1e-4)
    lone = few.states[1].x - state.level.sigma * few.states[0].x / first.level.sigma
    torch.testing.assert_close(lone, signal[:1], atol=1e-3, rtol=1e-3)
    limit = (state.level.alpha * first.x0[0]).std()
    assert (signal.flatten(1).std(1) <= limit * (1 + 1e-4)).all()
    each = Watch()
    apart = run(pipe, [make(shared=False), each], n=2, eta=1.0)
    assert apart.ledger.backward_rows == 2 * 3 * 4
    own = each.states[1].x - state.level.sigma * each.states[0].x / first.level.sigma
    assert (own[0] - own[1]).abs().max() > 1e-3


def test_bad_settings_are_refused():
    pipe = pipeline()
    make = partial(compose.saga, pipe.unet, pipe.tokenizer)
    with pytest.raises(ValueError, match="expected 0 <= at < 1"):
        make(at=1.0)
    with pytest.raises(ValueError, match="expected a finite strength"):
        compose.aligned(pipe.unet, pipe.tokenizer, math.nan)
    with pytest.raises(ValueError, match="second step or later"):
        run(pipe, make(), num_inference_steps=1)
    with pytest.raises(ValueError, match="no entity was found"):
        run(pipe, make(), prompt="noto style")
    with pytest.raises(ValueError, match=r"side = 16.*heights \[4\]"):
        run(pipe, compose.aligned(pipe.unet, pipe.tokenizer, side=16))
    with pytest.raises(ValueError, match="but the entities of"):
        run(pipe, compose.in_boxes(pipe.unet, pipe.tokenizer, {"fox": (0.0, 0.0, 0.5, 1.0)}))


# verifier and refinement


def test_faults_are_what_fails():
    def faults(coarse, fine):
        return compose.Verdict(coarse, fine).faults()

    assert faults((0.2, 0.9), (0.1, 0.8)) == (Fault(0, True, True),)
    assert faults((0.9, 0.9), (0.8, 0.3)) == (Fault(1, False, True),)  # the attribute alone
    assert faults((0.2, 0.1), (0.6, 0.2)) == (Fault(0, True, False), Fault(1, True, True))
    assert faults((0.9, 0.8), (0.9, 0.7)) == (Fault(1, True, True),)  # nothing fails: the lowest


def test_repairs_look_at_one_fault_after_the_other():
    """Losses of stage 2, by hand: an entity against the good ones, then against those and the repaired one."""
    asked = parse("red cat above dog and fox")
    maps = torch.rand(1, 24, 4, 4, generator=tiny.generator(), dtype=torch.float64)
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 24
    seen = compose.Seen(maps, asked, streams(tokenizer, 24))
    cat, dog, fox = seen.entities(1.0)[:, :, None].unbind(1)
    (word,) = seen.of(asked.entities[0].attributes, 1.0)[:, :, None].unbind(1)
    faults = ((Fault(0, True, True), Fault(1, True, False), Fault(2, False, True)),)
    good = [torch.cat([fox], 1), torch.cat([cat, fox], 1)]
    above = losses.spatial(seen.entities(100.0), [("above", 0, 1)])
    for turn, (own, others) in enumerate(zip((cat, dog), good, strict=True)):
        g = losses.gaps(own, others, 100.0)[:, 0]
        expected = (1 - g / others.shape[1]).clamp_min(0) + losses.overlap(own, others).sum(1) + above
        expected = expected + (1 - losses.overlap(word, cat)[:, 0] if turn == 0 else 0)
        torch.testing.assert_close(compose.Repair(faults, turn)(seen), expected)
    assert compose.Repair(faults, 2)(seen).item() == compose.Repair(faults, 3)(seen).item() == 0
    lonely = compose.Repair(((Fault(0), Fault(1), Fault(2)),))(seen)
    torch.testing.assert_close(lonely, 1 - losses.peaks(cat)[:, 0] + above)


def test_boxes_hold_where_a_word_is_attended_to():
    maps = torch.zeros(1, 16, 8, 8)
    maps[0, 2:5, 1:3, 4:6] = 1.0  # the letters of "cat"
    seen = compose.Seen(maps, parse("a cat"), streams(tiny.tokenizer(), 16))
    assert attended(seen, share=4 / 64, enlarge=0.0) == [(0.5, 0.125, 0.75, 0.375)]
    assert attended(seen, share=4 / 64, enlarge=1.0) == [(0.375, 0.0, 0.875, 0.5)]
    picture = torch.zeros(3, 16, 16)
    picture[:, 2:6, 8:12] = 1.0
    assert crop(picture, (0.5, 0.125, 0.75, 0.375)).min() > 0.99


class Half:
    """A verifier that is sure of the cat, and takes a bright picture for one that shows the rest."""

    def __init__(self):
        self.asked = []

    def __call__(self, pictures, texts):
        self.asked += texts
        return torch.tensor([0.9 if "cat" in text else float(p.mean()) / 10 for p, text in zip(pictures, texts)])


def test_refinement_keeps_the_better_of_two_runs():
    pipe, verifier = pipeline(), Half()
    reader, text = Reader(pipe.unet, pipe.tokenizer), "red cat and dog"

    def make(controllers):
        return run(pipe, controllers, text)

    best = compose.refined(make, reader, verifier, strength=3.0)
    assert verifier.asked[:8] == ["cat", "cat", "dog", "dog", "red cat", "red cat", "dog", "dog"]
    assert best.faults == ((Fault(1, True, True),),)
    before, after = (verdicts[0].score for verdicts in best.verdicts)
    assert best.chosen == [int(after > before)]
    assert torch.equal(best.images[0], best.stages[best.chosen[0]].images[0])
    own = 2 * 4 + 1 + 2  # guided, the recorder's look, two steps of stage 1
    assert (best.ledger.rows, best.ledger.backward_rows) == (2 * own + 1, 2 * 2 + 1)
    assert best.ledger.reward_calls == len(verifier.asked) == 2 * 8
    assert torch.equal(best.stages[0].images, run(pipe, compose.aligned(pipe.unet, pipe.tokenizer, 3.0), text).images)
    assert not torch.equal(best.stages[1].images, best.stages[0].images)

    def another(controllers):
        return Steered(pipe, controllers)(text, n=1, **ASK)

    with pytest.raises(ValueError, match="same seed"):
        compose.refined(another, reader, verifier)
    with pytest.raises(ValueError, match="expected a finite score for each of 8"):
        compose.refined(make, reader, lambda pictures, texts: torch.zeros(len(texts) - 1))


def test_refinement_takes_the_winners_of_a_search():
    pipe, verifier = pipeline(), Half()

    def make(controllers):
        return run(pipe, [*controllers, steer.code(dark, block=2)], [PROMPT, "a red fox"], n=2, eta=1.0)

    best = compose.refined(make, Reader(pipe.unet, pipe.tokenizer), verifier, strength=3.0)
    assert best.pictures.shape == (2, 2, 3, 16, 16)
    for stage, pictures in zip(best.stages, best.pictures, strict=True):
        assert torch.equal(dark(pictures, None), stage.rewards)
