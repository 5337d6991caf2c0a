"""Network and decoder called for a few particles at a time: the same search, in less memory."""

import pytest
import tiny
import torch
from solver_cases import CASES, brightness

import steer
from steer.diffusion.controllers import code
from steer.diffusion.pipelines import Steered, attach


@pytest.fixture(scope="module")
def sixteen():
    """chunk -> 16 candidates of one embedded picture."""
    pipe = steer.load("emoji")
    pipe.set_progress_bar_config(disable=True)
    search = code(steer.rewards.Compressibility(), 2)

    def run(chunk):
        ask = {"num_inference_steps": 4, "generator": tiny.generator(), "output_type": "pt"}
        return Steered(pipe, search, chunk=chunk)("a red apple", n=16, **ask)

    return run


@pytest.fixture(scope="module")
def whole(sixteen):
    return sixteen(None)


@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
def test_any_chunk_makes_the_same_choices_and_pictures(sixteen, whole, chunk):
    out = sixteen(chunk)
    assert torch.equal(out.lineage, whole.lineage)
    assert torch.allclose(out.images, whole.images, atol=1e-4)
    assert torch.allclose(out.candidates.latents, whole.candidates.latents, atol=1e-4)
    assert out.ledger.rows == whole.ledger.rows
    assert out.ledger.decodes == whole.ledger.decodes


def test_no_call_is_larger_than_its_chunk():
    """Two branches of guidance a particle; 8 particles after a common start."""
    pipe, seen, decoded = CASES["ddim-eta"].pipe(), [], []
    pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    pipe.vae.decoder.register_forward_pre_hook(lambda module, args: decoded.append(len(args[0])))
    ask = {"num_inference_steps": 4, "guidance_scale": 3.0, "generator": tiny.generator()}
    out = Steered(pipe, code(brightness, 2), eta=1.0, chunk=3)("a cat", n=8, **ask)
    assert seen == [2] + [6, 6, 4] * 3
    assert sum(seen) == out.ledger.rows
    assert set(decoded) == {3, 2}
    assert sum(decoded) == out.ledger.decodes


@pytest.mark.parametrize(("chunk", "exact"), [(0, False), (-1, False), (2.5, False), (4, True)])
def test_bad_chunks(chunk, exact):
    with (
        pytest.raises(ValueError, match=rf"chunk = {chunk}.*(>= 1|give one)"),
        attach(CASES["ddim-eta"].pipe(), n=4, exact=exact, chunk=chunk),
    ):
        pass
