"""Laws and oracles of the guidance methods that perturb layers, on a tiny Stable Diffusion pipeline."""

from __future__ import annotations

import math

import tiny
import tiny_families
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionPAGPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from methods.guidance_toys import same
from torch import nn

from steer import Steered
from steer.diffusion.controllers.guidance.attention import PerturbedAttention
from steer.diffusion.controllers.guidance.core import Guide

ASK = {"num_inference_steps": 3, "output_type": "latent"}


def pipeline(kind: type | None = None, **kwargs):
    """The tiny pipeline with DDIM as Stable Diffusion has it, or the same parts in another class."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False}
    pipe = tiny.pipeline(DDIMScheduler(**settings, clip_sample=False, steps_offset=1))
    for name, weights in pipe.unet.named_parameters():
        if "mid_block" in name and "attn1" in name and "bias" not in name:
            weights.data *= 8  # in a random network self-attention is a mean, whatever its queries
    if kind is not None:
        pipe = kind(**pipe.components, requires_safety_checker=False, **kwargs)
        pipe.set_progress_bar_config(disable=True)
    return pipe


def stock(pipe, weight: float = 3.0, **kwargs) -> torch.Tensor:
    """The latents that the pipeline ends with by itself."""
    return pipe("a cat", guidance_scale=weight, generator=tiny.generator(), **ASK, **kwargs).images


def steered(pipe, controllers, n: int = 1, guidance_scale: float = 2.0, **kwargs):
    """The result under controllers; the pipeline's own scale is one that no test asks for."""
    options = {"generator": tiny.generator(), **ASK, **kwargs}
    return Steered(pipe, controllers)("a cat", n=n, guidance_scale=guidance_scale, **options)


def attributes(network: nn.Module) -> list:
    return [(sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]


def without_a_scale(make) -> None:
    """Strength 0 is the pipeline's own guidance at its own rows, and the network is left as it was."""
    pipe = pipeline()
    before = attributes(pipe.unet)
    plain = steered(pipe, make(pipe.unet, 3.0, 0.0))
    assert same(plain.images, stock(pipe), 1e-5)
    assert plain.ledger.rows == 2 * 3
    pushed = steered(pipe, make(pipe.unet, 3.0, 3.0))
    assert pushed.ledger.rows == 3 * 3
    assert not same(pushed.images, plain.images, 1e-3)
    assert steered(pipe, make(pipe.unet, 1.0, 3.0), guidance_scale=1.0).ledger.rows == 2 * 3
    assert attributes(pipe.unet) == before


def pag_law(make) -> None:
    without_a_scale(make)


def pag_oracle(make) -> None:
    """diffusers' own pipeline for it, which knows no other guidance and no search."""
    theirs = pipeline(StableDiffusionPAGPipeline, pag_applied_layers="mid")
    pipe = pipeline()
    assert same(steered(pipe, make(pipe.unet, 3.0, 2.0)).images, stock(theirs, pag_scale=2.0), 1e-5)


def seg_law(make) -> None:
    without_a_scale(make)
    pipe = pipeline()
    sharp = steered(pipe, make(pipe.unet, 3.0, 3.0, sigma=0.01)).images  # a blur of a hundredth of a pixel
    assert same(sharp, stock(pipe), 1e-5)


def seg_oracle(make) -> None:
    """The mean query, put in by hand where it is projected."""
    pipe, by_hand = pipeline(), pipeline()

    def mean(module, args, query):
        return query.mean(1, keepdim=True).expand_as(query)

    class MeanQuery(PerturbedAttention):
        def wrap(self, denoiser):
            def perturbed(x, level, cond):
                handles = [m.to_q.register_forward_hook(mean) for m in (site.module for site in self._sites())]
                answer = denoiser(x, level, cond)
                for handle in handles:
                    handle.remove()
                return answer

            return perturbed

    ours = make(pipe.unet, 3.0, 2.0, sigma=math.inf)
    reference = Guide(ours.rule, weak=MeanQuery(by_hand.unet))
    assert same(steered(pipe, ours).images, steered(by_hand, reference).images, 1e-5)


def slg_law(make) -> None:
    without_a_scale(lambda network, weight, scale: make(network, weight, "transformer_blocks", scale, 0.0, 1.0))
    pipe = pipeline()
    part = steered(pipe, make(pipe.unet, 3.0, "transformer_blocks", start=0.3, stop=0.6))
    assert part.ledger.rows == 2 * 3 + 1  # one of three steps lies in it


def slg_oracle(make) -> None:
    """The stock Stable Diffusion 3 pipeline, which has it built in."""
    pipe = tiny_families.sd3(FlowMatchEulerDiscreteScheduler(), num_layers=2)
    pipe.set_progress_bar_config(disable=True)
    options = {"max_sequence_length": 8, "skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.9}
    theirs = stock(pipe, skip_guidance_layers=[1], **options)
    ours = make(pipe.transformer, 3.0, r"^transformer_blocks\.1$", stop=0.9)
    assert same(steered(pipe, ours, max_sequence_length=8).images, theirs, 1e-5)
    assert not same(stock(pipe, max_sequence_length=8), theirs, 1e-2)


def nag_law(make) -> None:
    """Scale 1 is the conditional branch alone, in one row; the negative prompt counts; the network stays as it was."""
    pipe = pipeline()
    before = attributes(pipe.unet)
    plain = steered(pipe, make(pipe.unet, 1.0))
    assert plain.ledger.rows == 3
    assert same(plain.images, stock(pipe, 1.0), 1e-5)
    pushed, other = (steered(pipe, make(pipe.unet, alpha=1.0), negative_prompt=text) for text in ("", "dog"))
    assert pushed.ledger.rows == 3
    assert not same(pushed.images, plain.images, 1e-3)
    assert not same(pushed.images, other.images, 1e-3)
    assert attributes(pipe.unet) == before


def nag_oracle(make) -> None:
    """The paper's three equations in an attention processor of its own, which is given both prompts by hand."""
    pipe, by_hand = pipeline(), pipeline()
    scale, tau, alpha, negative = 5.0, 1.5, 0.5, None

    class Processor(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            q = attn.head_to_batch_dim(attn.to_q(hidden_states))
            read = []
            for context in (encoder_hidden_states, negative.expand_as(encoder_hidden_states)):
                k, v = (attn.head_to_batch_dim(layer(context)) for layer in (attn.to_k, attn.to_v))
                read.append(attn.batch_to_head_dim(torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v))
            z = read[0] * scale - read[1] * (scale - 1)
            share = z.norm(p=1, dim=-1, keepdim=True) / read[0].norm(p=1, dim=-1, keepdim=True)
            z = torch.minimum(share, torch.full_like(share, tau)) / share * z
            return attn.to_out[0](alpha * z + (1 - alpha) * read[0])

    negative = by_hand.encode_prompt("dog", "cpu", 1, False)[0]
    for name, module in by_hand.unet.named_modules():
        if name.endswith("attn2"):
            module.set_processor(Processor())
    ours = steered(pipe, make(pipe.unet, scale, tau, alpha), negative_prompt="dog").images
    assert same(ours, stock(by_hand, 1.0), 1e-5)
    assert not same(ours, stock(pipe, 1.0), 1e-3)
