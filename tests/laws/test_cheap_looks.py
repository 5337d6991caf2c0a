"""Cheap decoders for looks: linear ones are found exactly, and the last look always uses the full decoder."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from diffusers import AutoencoderTiny, DDIMScheduler
from torch.nn import functional as F

from steer import Steered, code, funnel
from steer.rewards import FromCallable, LinearDecoder, Sharpness, VaeDecoder, looking
from steer.rewards.base import Reward


class Affine:
    """An autoencoder whose decoder is a 3 x 3 convolution to patches of 2 x 2 pixels."""

    config = type("Config", (dict,), {"scaling_factor": 0.5})(shift_factor=0.25)
    dtype = torch.float32

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.weight, self.bias = 0.01 * torch.randn(12, 4, 3, 3, generator=g), 0.1 * torch.randn(12, generator=g)
        self.decoded = 0

    def decode(self, z, return_dict=True):
        self.decoded += len(z)
        border = F.pad(z - 0.25, (1,) * 4)  # beyond the border: a latent of zero, as the pipeline scales it
        return (F.pixel_shuffle(F.conv2d(border, self.weight, self.bias), 2),)


def latents(count: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_a_linear_decoder_is_found_exactly():
    vae = Affine()
    decoder = LinearDecoder.fit(vae, latents(), reach=1)
    assert (decoder.factor, vae.decoded) == (2, 8)
    fresh = latents(seed=2)
    assert torch.allclose(decoder(fresh), VaeDecoder(vae)(fresh), atol=1e-5)
    assert decoder.error < 1e-6
    assert LinearDecoder.fit(vae, latents(), reach=0).error > 0.005  # neighbours matter here
    assert "weight" not in repr(decoder)


def test_a_linear_decoder_is_differentiable():
    x = latents(2).requires_grad_()
    LinearDecoder.fit(Affine(), latents())(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_its_error_falls_with_reach_on_a_real_decoder():
    """A convolutional autoencoder is not linear; neighbours explain more of it, and a constant picture less."""
    pipe = tiny.pipeline(DDIMScheduler())
    errors = [LinearDecoder.fit(pipe.vae, latents(24), reach=r).error for r in (0, 1)]
    spread = float(VaeDecoder(pipe.vae)(latents(24)).detach().std())
    assert errors[1] < errors[0] < spread


def test_a_tiny_autoencoder_is_a_decoder():
    torch.manual_seed(0)
    tiny_vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), upsampling_scaling_factor=2,
    )  # fmt: skip
    with torch.no_grad():
        pictures = VaeDecoder(tiny_vae)(latents(2))
    assert pictures.shape == (2, 3, 16, 16)
    assert 0 <= pictures.min() < pictures.max() <= 1
    assert VaeDecoder(tiny_vae).name == "AutoencoderTiny"


class Spy:
    """Scores by brightness and counts; as a decoder it gives constant pictures, of the latents' mean."""

    def __init__(self):
        self.scored, self.looked = [], 0

    def decode(self, z):
        self.looked += len(z)
        return z.mean((1, 2, 3), keepdim=True).sigmoid().expand(-1, 3, 16, 16)

    def score(self, pictures, prompts):
        self.scored.append(pictures)
        return pictures.mean((1, 2, 3))


@pytest.mark.parametrize("search", [lambda r: code(r, 2), lambda r: funnel(r, (4, 2, 1), 2)])
def test_only_the_last_look_decodes(search):
    spy = Spy()
    pipe = tiny.pipeline(DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False))
    reward = FromCallable(spy.score)
    out = Steered(pipe, search(looking(reward, spy.decode)))(
        "a cat", n=4, eta=1.0, num_inference_steps=6, guidance_scale=3.0, generator=tiny.generator(), output_type="pt"
    )
    last = int(torch.isfinite(out.candidates.scores).sum())
    assert out.ledger.decodes == last
    assert out.ledger.reward_calls == spy.looked + last
    looks = len(spy.scored) - 1
    assert all((picture.flatten(2).std(-1) < 1e-6).all() for picture in spy.scored[:looks])  # the cheap ones
    exact = reward(out.images.float(), ["a cat"])  # the final score is that of the full decoder's picture
    assert torch.allclose(out.rewards, exact, atol=1e-4)


def test_a_cheap_look_that_is_exact_chooses_the_same():
    """With the full decoder in the cheap one's place nothing changes but what the ledger calls a decode."""
    pipe = tiny.pipeline(DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False))
    ask = {"n": 4, "eta": 1.0, "num_inference_steps": 6, "output_type": "latent"}
    full = Steered(pipe, code(Sharpness(), 2))("a cat", generator=tiny.generator(), **ask)
    copy = tiny.pipeline(DDIMScheduler()).vae  # the same weights, under no pipeline that counts
    cheap = Steered(pipe, code(looking(Sharpness(), VaeDecoder(copy)), 2))("a cat", generator=tiny.generator(), **ask)
    assert torch.equal(full.images, cheap.images)
    assert (full.ledger.decodes, cheap.ledger.decodes) == (12, 4)
    assert full.ledger.reward_calls == cheap.ledger.reward_calls == 12


def test_what_cannot_work_is_refused():
    class Latent(Reward):
        needs_decode = False

    with pytest.raises(ValueError, match="looks at latents already"):
        looking(Latent(), lambda z: z)
    with pytest.raises(ValueError, match=r"1 latents have 4 pixels for 37 unknowns.*smaller reach"):
        LinearDecoder.fit(Affine(), latents(1)[..., :2, :2])
    with pytest.raises(ValueError, match="no diffusers autoencoder"):
        VaeDecoder(SimpleNamespace())
