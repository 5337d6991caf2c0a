"""Looking before moving makes the choices of the published order at 1 / (1 + 1 / B) of its rows."""

import pytest
import tiny
import torch
from diffusers import DDIMScheduler
from toys import Counting, gaussian, near_corner, quadratic, run, three_modes

from steer import code, denoiser_of, finished, sample
from steer.bench.published import code_as_published
from steer.diffusion.schedule import flow, karras, vp
from steer.diffusion.solve import ddim

N, P = 5, 3


def published(prior, reward, schedule, block: int, seed: int = 0, **options):
    generator = torch.Generator().manual_seed(seed)
    shape = (prior.means.shape[1],)
    return code_as_published(
        prior, shape, schedule, reward, n=N, block=block, generator=generator, prompts=[""] * P, **options
    )


def same_choices(ours, theirs) -> None:
    assert [look.i for look in ours.trace] == [look.i for look in theirs.trace]
    for mine, other in zip(ours.trace, theirs.trace, strict=True):
        assert torch.equal(mine.index, other.index)
        assert torch.allclose(mine.scores, other.scores, atol=1e-5)
    assert (ours.x - theirs.x).abs().max() <= 1e-5 * theirs.x.abs().max()


@pytest.mark.parametrize("block", [1, 3, 5, 20])
@pytest.mark.parametrize("schedule", [vp(20), flow(20), karras(20)], ids=["vp", "flow", "karras"])
def test_identical_choices_on_the_toys(block, schedule):
    for seed in range(3):
        for prior, reward in ((three_modes(), near_corner), (gaussian(), quadratic)):
            theirs = published(prior, reward, schedule, block, seed, solver=ddim(0.8))
            ours = run(prior, code(reward, block), n=N, groups=P, seed=seed, schedule=schedule, solver=ddim(0.8))
            same_choices(ours, theirs)
            assert len({int(i) for look in ours.trace for i in look.index.flatten()}) > 1


@pytest.mark.parametrize(("block", "steps"), [(1, 20), (4, 20), (5, 20), (20, 20), (7, 20), (1, 1)])
def test_the_rows_of_either_order(block, steps):
    prior = Counting()
    state = published(prior, quadratic, vp(steps), block)
    assert state.run.ledger.rows == prior.rows == P * N * (steps + (steps - 1) // block)
    assert state.run.ledger.reward_calls == P * N * -(-steps // block)
    if steps > 1:
        ours = run(gaussian(), code(quadratic, block), n=N, groups=P, steps=steps).run.ledger
        assert ours.rows == P * (N * (steps - 1) + 1)
        assert ours.reward_calls == state.run.ledger.reward_calls


def test_the_share_of_the_rows_at_the_published_sizes():
    """N = 40, T = 500: 1 / (1 + 1 / B) of the rows, to the rows that either order can leave out at its ends."""
    n, steps = 40, 500
    for block in (1, 5, 20):
        ours, theirs = n * (steps - 1) + 1, n * (steps + (steps - 1) // block)
        assert abs(ours / theirs - 1 / (1 + 1 / block)) < 0.002


@pytest.mark.parametrize("block", [1, 2])
def test_identical_choices_on_a_pipeline(block):
    pipe = tiny.pipeline(DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False))
    d = denoiser_of(pipe, ["a cat", "dog"], num_inference_steps=6, guidance_scale=3.0)

    def darkness(pictures, prompts):
        return -pictures.mean((1, 2, 3))

    options = {"n": 4, "cond": d.cond, "prompts": d.prompts, "decode": d.decode}
    with torch.no_grad():
        theirs = code_as_published(d, d.shape, d.schedule, darkness, block=block, generator=tiny.generator(), **options)
        ours = finished(sample(d, d.shape, d.schedule, code(darkness, block), generator=tiny.generator(), **options))
    same_choices(ours, theirs)
    assert len({int(i) for look in ours.trace for i in look.index.flatten()}) > 1
    assert ours.run.ledger.rows == 2 * 2 * (4 * 5 + 1)
    assert theirs.run.ledger.rows == 2 * 2 * 4 * (6 + 5 // block)
    assert ours.run.ledger.decodes == theirs.run.ledger.decodes == 2 * 4 * (6 // block)
