"""Laws and oracles of the style methods, on a tiny Stable Diffusion pipeline."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import tiny
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from methods import guidance_layers
from methods.guidance_toys import same
from methods.method import Method
from torch import Tensor

import steer
from steer.diffusion.controllers import style

STEPS = 4
ASK = {"num_inference_steps": STEPS, "output_type": "latent", "guidance_scale": 1.0}
UP = "up_blocks"
LOUD = 1e-4  # the last bits of a start are made ten times as large by a network whose attention is eight times as loud


def pipeline():
    """The tiny pipeline with self-attention that tells its tokens apart."""
    pipe = guidance_layers.pipeline()
    for name, weights in pipe.unet.named_parameters():
        if "up_blocks" in name and "attn1" in name and "bias" not in name:
            weights.data *= 8
    return pipe


@functools.cache
def references():
    """The pipeline, and two inverted pictures: a content and a style."""
    pipe = pipeline()
    pictures = torch.rand(2, 3, 16, 16, generator=tiny.generator(5))
    pictures[1] = pictures[1] * 0.3 + 0.1
    content, other = (steer.invert(pipe, one[None], num_inference_steps=STEPS) for one in pictures)
    return pipe, content, other


def steered(pipe, controllers, prompt: str | list[str] = "", n: int = 1, **kwargs):
    options = {"generator": tiny.generator(), **ASK, **kwargs}
    return steer.Steered(pipe, controllers)(prompt, n=n, **options)


def plain(pipe, prompt: str | list[str] = "", **kwargs) -> Tensor:
    return pipe(prompt, **{"generator": tiny.generator(), **ASK, **kwargs}).images


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of (rows, heads, tokens, d) queries, keys and values."""


class ByHand(AttnProcessor2_0):
    """A processor whose attention is given, written as papers write it."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.attention = attention

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        parts = (layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        out = self.attention(*(part.transpose(1, 2) for part in parts))
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


def matched(x: Tensor, y: Tensor, dim) -> Tensor:
    """AdaIN, with the biased variance and 1e-5."""
    (mean, std), (goal, wide) = (
        (one.mean(dim, keepdim=True), (one.var(dim, correction=0, keepdim=True) + 1e-5).sqrt()) for one in (x, y)
    )
    return wide * (x - mean) / std + goal


@torch.no_grad()
def by_hand(x: Tensor, others: list, attention: Attention, where: str, prompts: tuple[str, ...] = ("",)) -> Tensor:
    """The pipeline's run from x, others' latents behind it, with another self-attention in the modules named."""
    pipe = pipeline()
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn1") and where in name:
            module.set_processor(ByHand(attention))
    words = pipe.encode_prompt([*prompts, *[""] * len(others)], "cpu", 1, False)[0]
    pipe.scheduler.set_timesteps(STEPS)
    for i, t in enumerate(pipe.scheduler.timesteps):
        rows = torch.cat([x, *(one.x[i] for one in others)])
        eps = pipe.unet(rows, t, words).sample[: len(x)]
        x = pipe.scheduler.step(eps, t, x).prev_sample
    return x


def style_id_law(make) -> None:
    """Features from the very call that they replace, tau 1: the plain run, whatever gamma; strength 0: bit for bit."""
    pipe, content, other = references()
    kept = steer.record(pipe, "a cat", generator=tiny.generator(), **ASK)
    for gamma in (0.0, 0.4, 1.0):
        found = steered(pipe, make(pipe.unet, kept, kept, gamma, 1.0, layers=""), "a cat")
        assert same(found.images, kept.latents, 1e-5)
        assert found.ledger.rows == STEPS + (STEPS - 1) * (2 if gamma else 1)
    idle = steered(pipe, make(pipe.unet, content, other, strength=0.0), "a cat")
    assert torch.equal(idle.images, plain(pipe, "a cat"))
    assert idle.ledger.rows == STEPS
    back = plain(pipe, latents=content.noise)
    dial = [steered(pipe, make(pipe.unet, content, other, strength=s)).images for s in (0.01, 0.5, 1.0)]
    apart = [float((one - back).abs().mean()) for one in dial]
    assert 0 < apart[0] < 0.1 * apart[1] < 0.1 * apart[2]


def style_id_oracle(make) -> None:
    """The published form: features stored beforehand, step by step, and put in by processors."""
    pipe, content, other = references()
    gamma, tau, kept, step = 0.6, 1.3, {}, 0

    class Stores(ByHand):
        def __init__(self, who: str, name: str):
            super().__init__(self.keep)
            self.who, self.name = who, name

        def keep(self, q, k, v):
            kept[self.who, self.name, step] = q, k, v
            return softmax(q, k, v)

    class Injects(ByHand):
        def __init__(self, name: str):
            super().__init__(self.inject)
            self.name = name

        def inject(self, q, k, v):
            if step == 0:
                return softmax(q, k, v)
            theirs, (_, k, v) = kept["content", self.name, step][0], kept["style", self.name, step]
            return softmax(tau * (gamma * theirs + (1 - gamma) * q), k, v)

    theirs = pipeline()
    words = theirs.encode_prompt("", "cpu", 1, False)[0]
    theirs.scheduler.set_timesteps(STEPS)
    modules = {n: m for n, m in theirs.unet.named_modules() if n.endswith("attn1") and UP in n}
    with torch.no_grad():
        for who, trajectory in (("content", content), ("style", other)):
            for name, module in modules.items():
                module.set_processor(Stores(who, name))
            for step, t in enumerate(theirs.scheduler.timesteps):
                theirs.unet(trajectory.x[step], t, words)
        for name, module in modules.items():
            module.set_processor(Injects(name))
        x = matched(content.noise, other.noise, (-2, -1))
        for step, t in enumerate(theirs.scheduler.timesteps):
            x = theirs.scheduler.step(theirs.unet(x, t, words).sample, t, x).prev_sample
    assert same(steered(pipe, make(pipe.unet, content, other, gamma, tau)).images, x, LOUD)
    assert not same(plain(pipe, latents=content.noise), x, 1e-2)


def style_aligned_law(make) -> None:
    """Strength 0 is bit for bit no control; without a reference the first particle is as by itself."""
    pipe, _, other = references()
    assert torch.equal(steered(pipe, make(pipe.unet, other, strength=0.0), "a cat").images, plain(pipe, "a cat"))
    both = steered(pipe, make(pipe.unet), ["a cat", "dog"])
    alone = plain(pipe, ["a cat", "dog"])
    assert both.ledger.rows == 2 * STEPS
    assert same(both.images[0], alone[0], 1e-5)
    assert not same(both.images[1], alone[1], 1e-3)


def style_aligned_oracle(make) -> None:
    """Equations of the paper, in a processor that sees particle and reference in one batch."""
    pipe, _, other = references()

    def attention(q, k, v):
        q, k = (torch.cat([matched(part[:1], part[1:], -2), part[1:]]) for part in (q, k))
        first = softmax(q[:1], *(torch.cat([part[:1], part[1:]], -2) for part in (k, v)))
        return torch.cat([first, softmax(q[1:], k[1:], v[1:])])

    start = steer.denoiser_of(pipe, "", generator=tiny.generator(), **ASK).x
    found = steered(pipe, make(pipe.unet, other))
    assert found.ledger.rows == 2 * STEPS
    assert same(found.images, by_hand(start, [other], attention, ""), 1e-5)


def coupled_law(make) -> None:
    """A set of one is the network itself, bit for bit."""
    pipe, _, _ = references()
    denoiser = steer.denoiser_of(pipe, "a cat", generator=tiny.generator(), **ASK)
    call = denoiser.x, denoiser.schedule[1], denoiser.cond
    with torch.no_grad():
        assert torch.equal(make(pipe.unet).wrap(denoiser)(*call), denoiser(*call))
    assert steered(pipe, make(pipe.unet), "a cat").ledger.rows == STEPS


def coupled_oracle(make) -> None:
    """Keys and values of (pictures, tokens) as those of one picture, for every picture."""
    pipe, _, _ = references()

    def attention(q, k, v):
        return softmax(q, *(part.transpose(0, 1).flatten(1, 2).expand(len(q), -1, -1, -1) for part in (k, v)))

    prompts = ("a cat", "dog", "bird")
    start = steer.denoiser_of(pipe, list(prompts), generator=tiny.generator(), **ASK).x
    found = steered(pipe, make(pipe.unet), list(prompts)).images
    assert same(found, by_hand(start, [], attention, "", prompts), 1e-5)


def attention_adain_law(make) -> None:
    """alpha 0 is bit for bit no control; statistics of the very call change nothing."""
    pipe, _, other = references()
    kept = steer.record(pipe, "a cat", generator=tiny.generator(), **ASK)
    assert torch.equal(steered(pipe, make(pipe.unet, other, 0.0), "a cat").images, kept.latents)
    assert same(steered(pipe, make(pipe.unet, kept), "a cat").images, kept.latents, 1e-5)


def attention_adain_oracle(make) -> None:
    pipe, _, other = references()

    def attention(q, k, v):
        q, k, v = (torch.cat([matched(part[:1], part[1:], -2), part[1:]]) for part in (q, k, v))
        return softmax(q, k, v)

    start = steer.denoiser_of(pipe, "", generator=tiny.generator(), **ASK).x
    found = steered(pipe, make(pipe.unet, other, parts=("query", "key", "value"))).images
    assert same(found, by_hand(start, [other], attention, ""), 1e-5)


def latent_adain_law(make) -> None:
    """alpha 0 changes no bit; alpha 1 ends in the reference's statistics; one's own change nothing."""
    pipe, _, other = references()
    assert torch.equal(steered(pipe, make(other, 0.0)).images, plain(pipe))
    found = steered(pipe, make(other))
    (var, mean), (wide, goal) = (torch.var_mean(one, (-2, -1), correction=0) for one in (found.images, other.latents))
    assert same(mean, goal, 1e-5)
    assert (var - wide).abs().max() < 1.1e-5  # AdaIN adds 1e-5 to both
    assert found.ledger.rows == STEPS
    kept = steer.record(pipe, "", generator=tiny.generator(), **ASK)
    assert same(steered(pipe, make(kept, clean=False)).images, kept.latents, 1e-5)


def latent_adain_oracle(make) -> None:
    """The start, made by hand, given to the plain pipeline."""
    pipe, content, other = references()
    start = 0.5 * content.noise + 0.5 * matched(content.noise, other.noise, (-2, -1))
    found = steered(pipe, make(other, 0.5, clean=False, content=content)).images
    assert same(found, plain(pipe, latents=start), LOUD)


METHODS: dict[str, Method] = {
    "style_id": Method(style.style_id, style_id_law, style_id_oracle),
    "style_aligned": Method(style.style_aligned, style_aligned_law, style_aligned_oracle),
    "coupled": Method(style.coupled, coupled_law, coupled_oracle),
    "attention_adain": Method(style.attention_adain, attention_adain_law, attention_adain_oracle),
    "latent_adain": Method(style.latent_adain, latent_adain_law, latent_adain_oracle),
}
