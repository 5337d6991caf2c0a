"""Laws of the verifier, of the losses that repair, and of refinement in two runs."""

import pytest
import tiny
import torch
from diffusers import DDIMScheduler

import steer
from steer import Steered
from steer.diffusion.controllers import compose
from steer.diffusion.controllers.compose import Fault, Reader, losses, parse
from steer.diffusion.controllers.compose.tokens import streams
from steer.diffusion.controllers.compose.verify import attended, crop

PROMPT = "a cat and dog"
ASK = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 3.0}


def pipeline():
    return tiny.pipeline(DDIMScheduler(clip_sample=False))


def run(pipe, controllers, prompt, n=1, eta=None):
    return Steered(pipe, controllers, eta)(prompt, n=n, generator=tiny.generator(), **ASK)


def dark(pictures, prompts):
    return -pictures.mean((1, 2, 3))


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
