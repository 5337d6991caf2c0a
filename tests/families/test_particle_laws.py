"""What a particle draws, and in exact mode what becomes of it, does not depend on how many others there are."""

import pytest
import tiny
import torch
from solver_cases import CASES, EVERY, NOISY, brightness, close, noise_of
from tiny import Watch
from torch.overrides import TorchFunctionMode

from steer.diffusion.controllers import code
from steer.diffusion.pipelines import Steered


class Record(TorchFunctionMode):
    """Notes all that `torch.randn` answers."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        if func is torch.randn:
            self.seen.append(answer)
        return answer


@EVERY
def test_noise_is_the_same_for_any_n(case, monkeypatch):
    four, eight = noise_of(case, 4, monkeypatch), noise_of(case, 8, monkeypatch)
    assert len(four) == len(eight)
    assert (len(four) > 1) == case.noisy
    assert all(torch.equal(a, b[:4]) for a, b in zip(four, eight))
    assert all(len(noise.unique(dim=0)) == 8 for noise in eight)
    if case.eta is None:
        with Record() as record:
            case.run(case.pipe())
        assert len(record.seen) == len(four)
        assert all(torch.equal(a, b[:1]) for a, b in zip(record.seen, four))


@EVERY
def test_exact_results_are_the_same_for_any_n(case):
    three, _ = case.attached(n=3, exact=True, output_type="pt")
    five, _ = case.attached(n=5, exact=True, output_type="pt")
    assert torch.equal(three, five[:3])
    assert not torch.equal(five[0], five[4])
    one = case.attached(n=1, output_type="pt")[0] if case.eta else case.run(case.pipe(), output_type="pt")
    assert torch.equal(one, five[:1])


@pytest.mark.parametrize("name", ["ddim-eta", "euler-a", "dpm2m-sde"])
def test_exact_results_of_two_prompts(name):
    case, prompts = CASES[name], ["a cat", "dog"]
    plain = case.run(case.pipe(), prompts, output_type="pt")
    three = case.attached(n=3, exact=True, prompt=prompts, output_type="pt")[0].unflatten(0, (2, 3))
    two = case.attached(n=2, exact=True, prompt=prompts, output_type="pt")[0].unflatten(0, (2, 2))
    assert torch.equal(three[:, 0], plain)
    assert torch.equal(three[:, :2], two)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "batched"])
def test_exact_batches_have_the_plain_calls_shape(exact):
    """Two prompts under guidance are 4 rows and 2 pictures; a common start is 1 row a prompt and branch."""
    pipe, seen, decoded = CASES["euler-a"].pipe(), [], []
    pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    pipe.vae.decoder.register_forward_pre_hook(lambda module, args: decoded.append(len(args[0])))
    search = code(brightness, 3)
    CASES["euler-a"].attached([search], 3, exact, pipe, prompt=["a cat", "dog"], output_type="pt")
    assert set(seen) == ({4} if exact else {4, 12})
    assert set(decoded) == ({2} if exact else {6})


@NOISY
def test_batched_results_agree_with_exact_ones(case):
    assert close(case.attached(n=4)[0], case.attached(n=4, exact=True)[0])


def test_a_list_with_one_generator_an_image_keeps_particle_0():
    case, prompts = CASES["euler-a"], ["a cat", "dog"]
    plain = case.run(case.pipe(), prompts, generator=[tiny.generator(5), tiny.generator(6)])
    watch = Watch()
    Steered(case.pipe(), [watch], exact=True)(
        prompts,
        n=3,
        generator=[tiny.generator(5), tiny.generator(6)],
        num_inference_steps=6,
        guidance_scale=3.0,
        output_type="latent",
    )
    assert torch.equal(watch.states[-1].x[[0, 3]], plain)
    assert len(watch.states[-1].x.unique(dim=0)) == 6


def test_a_list_with_one_generator_a_particle_wins():
    case = CASES["ddpm"]
    ours = case.attached(n=3, exact=True, generator=[tiny.generator(seed) for seed in (7, 8, 9)])[0]
    for row, seed in zip(ours, (7, 8, 9)):
        assert torch.equal(row, case.run(case.pipe(), seed=seed)[0])
