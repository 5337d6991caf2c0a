"""What a run costs: rows, decodes and reward calls, to the last one."""

import pytest
import tiny
import torch
from solver_cases import CASES, Gather, brightness
from tiny import Watch

from steer.diffusion.controllers import best_of_n, code
from steer.diffusion.controllers.search import Every, Search
from steer.diffusion.pipelines import Steered
from steer.pick import prune

ASK = {"guidance_scale": 3.0, "num_inference_steps": 6, "output_type": "latent"}


def rows(session) -> int:
    return session.ledger.rows


@pytest.mark.parametrize("name", ["ddim-eta", "euler-a", "euler-eta", "dpm2m-sde"])
@pytest.mark.parametrize("exact", [False, True], ids=["batched", "exact"])
def test_code_pays_n_rows_a_step_and_one_for_a_common_start(name, exact):
    case, n, steps = CASES[name], 4, 6
    _, common = case.attached([code(brightness, 2)], n, exact)
    _, distinct = case.attached([code(brightness, 2, common_start=False)], n, exact)
    assert rows(common) == 2 * (n * (steps - 1) + 1)
    assert rows(distinct) == 2 * n * steps
    assert common.ledger.decodes == common.ledger.reward_calls == 3 * n


def test_without_guidance_a_row_is_one_row():
    case = CASES["ddim-eta"]
    _, session = case.attached([code(brightness, 2)], 4, guidance_scale=1.0)
    assert rows(session) == 4 * 5 + 1


def test_two_prompts_pay_twice():
    _, session = CASES["euler-a"].attached([code(brightness, 2)], 3, prompt=["a cat", "dog"])
    assert rows(session) == 2 * 2 * (3 * 5 + 1)


@pytest.mark.parametrize("name", ["ddim-eta", "euler-a", "ddim", "unipc", "dpm2m-sde"])
@pytest.mark.parametrize("generators", ["one", "list"])
def test_pruned_slots_cost_nothing(name, generators):
    case, watch = CASES[name], Watch()
    given = tiny.generator() if generators == "one" else [tiny.generator(seed) for seed in range(4)]
    funnel = Search(brightness, Every(2), pick=prune(2))
    _, session = case.attached([funnel, watch], 4, generator=given)
    assert rows(session) == 2 * (3 * 4 + 3 * 2)
    assert session.ledger.reward_calls == session.ledger.decodes == 4 + 2 + 2
    last = watch.states[-1].x
    assert torch.equal(last[2:], last[:2])


def test_pruned_slots_of_a_common_start_cost_nothing():
    funnel = Search(brightness, Every(2), pick=prune(2), common_start=True)
    _, session = CASES["euler-a"].attached([funnel], 4)
    assert rows(session) == 2 * (1 + 2 * 4 + 3 * 2)


def test_equal_rows_of_a_deterministic_solver_are_evaluated_once():
    _, batched = CASES["unipc"].attached([Gather((1, 1, 3, 3), 2)])
    _, exact = CASES["unipc"].attached([Gather((1, 1, 3, 3), 2)], exact=True)
    assert rows(batched) == rows(exact) == 2 * (3 * 4 + 3 * 2)


def test_an_exact_batch_keeps_its_shape_and_pays_for_it():
    """Prompt 0 has one distinct particle left and prompt 1 has three: three batches of two rows."""

    class Uneven(Gather):
        def look(self, state):
            return state.gather(torch.tensor([[0, 0, 0], [0, 1, 2]])) if state.i == 2 else state

    prompts = ["a cat", "dog"]
    lean, session = CASES["ddim"].attached([Uneven((0,))], 3, True, prompt=prompts)
    assert rows(session) == 2 * (6 * 6)
    _, batched = CASES["ddim"].attached([Uneven((0,))], 3, prompt=prompts)
    assert rows(batched) == 2 * (6 * 3 + 4 * 3)
    free, _ = CASES["ddim"].attached((), 3, True, prompt=prompts)
    assert torch.equal(lean, free[[0, 0, 0, 3, 4, 5]])


def test_given_latents_are_shared_by_the_particles():
    latents = torch.randn(2, 4, 8, 8, generator=tiny.generator())
    case, prompts = CASES["ddim-eta"], ["a cat", "dog"]
    plain = case.run(case.pipe(), prompts, latents=latents)
    ours, session = case.attached((), 3, True, prompt=prompts, latents=latents)
    assert torch.equal(ours[[0, 3]], plain)
    assert rows(session) == 2 * 2 * (3 * 5 + 1)
    assert len(ours.unique(dim=0)) == 6


def test_winners_are_decoded_once_and_candidates_when_asked_for():
    pipe = CASES["euler-a"].pipe()
    scored = Steered(pipe, best_of_n(brightness))("a cat", n=4, **{**ASK, "output_type": "pt"})
    assert scored.ledger.decodes == 4
    best = scored.candidates.winners
    assert torch.equal(scored.images, scored.candidates.pictures[0, best])
    assert scored.ledger.decodes == 4
    free = Steered(pipe)("a cat", n=4, **{**ASK, "output_type": "pt"})
    assert (free.ledger.decodes, free.ledger.reward_calls) == (1, 0)
    assert free.candidates.pictures.shape == (1, 4, 3, 16, 16)
    assert free.ledger.decodes == 5
    assert free.ledger.seconds > 0
