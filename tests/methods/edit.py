"""Laws and oracles of the editing methods, on a tiny Stable Diffusion pipeline.

Oracle: the stock pipeline on source and target together, with attention processors that write the method out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tiny
import torch
from einops import rearrange
from methods.guidance_layers import ASK, attributes, pipeline
from methods.guidance_toys import same
from methods.method import Method
from torch import Tensor

import steer
from steer.diffusion.controllers import edit
from steer.diffusion.solve import transition

STEPS, SOURCE, TARGET = ASK["num_inference_steps"], "a cat", "a dog"
Rule = Callable[[str, float, Tensor, Tensor, Tensor], Tensor]
"""(name of the module, progress, query, key, value) -> output; rows: source and target without a prompt, then with."""


def heard():
    """The pipeline, with self-attention in the decoder that is more than a mean."""
    pipe = pipeline()
    for name, weights in pipe.unet.named_parameters():
        if "up_blocks" in name and "attn1.to_q.weight" in name:
            weights.data *= 20
    return pipe


def recorded(pipe):
    return steer.record(pipe, SOURCE, generator=tiny.generator(), guidance_scale=3.0, num_inference_steps=STEPS)


def steered(pipe, controllers, prompt: str = TARGET):
    options = {"generator": tiny.generator(), "guidance_scale": 3.0, **ASK}
    return steer.Steered(pipe, controllers)(prompt, n=1, **options)


def attention(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)


def by_hand(pipe, rule: Rule, noise: Tensor) -> Tensor:
    """The target's latents where every attention of the stock pipeline goes by the rule."""
    progress = 0.0

    class Processor:
        def __init__(self, name: str):
            self.name = name

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            parts = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
            heads = (rearrange(part, "b n (h d) -> b h n d", h=attn.heads) for part in parts)
            return attn.to_out[0](rearrange(rule(self.name, progress, *heads), "b h n d -> b n (h d)"))

    def tell(pipe, i, t, kwargs):
        nonlocal progress
        progress = (i + 1) / STEPS
        return {}

    before = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor({name: Processor(name) for name in before})
    two = {"latents": noise.repeat(2, 1, 1, 1), "guidance_scale": 3.0, "callback_on_step_end": tell}
    made = pipe([SOURCE, TARGET], **two, **ASK).images
    pipe.unet.set_attn_processor(before)
    return made[1:]


def without_strength(make, **nothing) -> None:
    """Strength 0 is no control, bit for bit; the source itself is the source; the network is left as it was."""
    pipe = heard()
    source, before = recorded(pipe), attributes(pipe.unet)
    plain, idle = steered(pipe, []), steered(pipe, make(pipe.unet, source, **nothing))
    assert torch.equal(idle.images, plain.images)
    assert idle.ledger.rows == plain.ledger.rows == 2 * STEPS
    assert same(steered(pipe, make(pipe.unet, source), SOURCE).images, source.latents, 1e-4)
    assert not same(steered(pipe, make(pipe.unet, source)).images, plain.images, 1e-3)
    assert attributes(pipe.unet) == before


def prompt_law(make) -> None:
    without_strength(make, cross=0.0, self_=0.0)


def prompt_oracle(make) -> None:
    """Replace, and refine with one word twice as loud: the conditional target's maps, column by column."""
    for swap, own, weights in ((True, [], {}), (False, [2, 3, 4], {3: 2.5})):
        pipe = heard()
        source = recorded(pipe)

        def rule(name, progress, query, key, value, own=own, weights=weights):
            maps = attention(query, key)
            if "attn2" in name and progress < 0.8:
                kept = maps[3, ..., own].clone()
                maps[3] = maps[2]
                maps[3, ..., own] = kept
                for token, factor in weights.items():
                    maps[3, ..., token] *= factor
            if "attn1" in name and progress < 0.4:
                maps[3] = maps[2]
            return maps @ value

        alignment = edit.aligned(pipe.tokenizer, SOURCE, TARGET, swap=swap)
        ours = steered(pipe, make(pipe.unet, source, alignment, cross=0.8, self_=0.4, weights=weights))
        assert ours.ledger.rows == 2 * 2 * STEPS
        theirs = by_hand(pipe, rule, source.noise)
        assert same(ours.images, theirs, 1e-4)
        assert not same(steered(pipe, make(pipe.unet, source, cross=0.8, self_=0.0)).images, theirs, 1e-3)


def masactrl_law(make) -> None:
    without_strength(make, from_step=1.0)


def masactrl_oracle(make) -> None:
    """Keys and values of the source in the decoder, from the second of three steps on."""
    pipe = heard()
    source = recorded(pipe)

    def rule(name, progress, query, key, value):
        if "up_blocks" in name and "attn1" in name and progress >= 0.3:
            key, value = (part[[0, 0, 2, 2]] for part in (key, value))
        return attention(query, key) @ value

    ours = steered(pipe, make(pipe.unet, source, from_step=0.3))
    assert ours.ledger.rows == 2 * (1 + 2 * 2)
    assert same(ours.images, by_hand(pipe, rule, source.noise), 1e-4)
    assert not same(ours.images, steered(pipe, make(pipe.unet, source, from_step=0.0)).images, 1e-4)


def plug_law(make) -> None:
    without_strength(make, attention=0.0, features=0.0)


def plug_oracle(make) -> None:
    """Queries and keys for one step of three, and the residual block written out for two."""
    pipe = heard()
    source = recorded(pipe)
    block, at = pipe.unet.up_blocks[1].resnets[1], 0.0

    def rule(name, progress, query, key, value):
        nonlocal at
        at = progress
        if "up_blocks" in name and "attn1" in name and progress < 0.3:
            query, key = (part[[0, 0, 2, 2]] for part in (query, key))
        return attention(query, key) @ value

    def written_out(x, temb):
        h = block.conv1(block.nonlinearity(block.norm1(x)))
        h = h + block.time_emb_proj(block.nonlinearity(temb))[:, :, None, None]
        h = block.conv2(block.nonlinearity(block.norm2(h)))
        h = h[[0, 0, 2, 2]] if at < 0.6 else h
        return (x if block.conv_shortcut is None else block.conv_shortcut(x)) + h

    ours = steered(pipe, make(pipe.unet, source, attention=0.3, features=0.6))
    assert ours.ledger.rows == 2 * (2 + 2 + 1)
    block.forward = written_out
    theirs = by_hand(pipe, rule, source.noise)
    del block.forward
    assert same(ours.images, theirs, 1e-4)
    assert not same(ours.images, steered(pipe, make(pipe.unet, source, attention=0.3, features=0.0)).images, 1e-3)


def hole() -> Tensor:
    mask = torch.zeros(8, 8)
    mask[2:6, 3:] = 1
    return mask


def inpaint_law(make) -> None:
    """A full mask is no control, an empty one the source, bit for bit, and it costs no row."""
    pipe = pipeline()
    source, plain = recorded(pipe), steered(pipe, [])
    for start in (source, source.latents):
        for mask, expected in ((torch.ones(8, 8), plain.images), (torch.zeros(8, 8), source.latents)):
            found = steered(pipe, make(mask, start))
            assert torch.equal(found.images, expected)
            assert found.ledger.rows == plain.ledger.rows


def inpaint_oracle(make) -> None:
    """Blended latent diffusion by a loop: what is known at each level, before the network is asked.

    Without a trajectory it is the latents under the noise that the run started from.
    """
    pipe, keep = pipeline(), hole() == 0
    source = recorded(pipe)
    options = {"guidance_scale": 3.0, "generator": tiny.generator(), "num_inference_steps": STEPS}
    d = steer.denoiser_of(pipe, TARGET, **options)
    first = d.schedule[0]
    noise = (d.x - first.alpha * source.latents) / first.sigma
    for start, known in (
        (source, source.at),
        (source.latents, lambda level: level.alpha * source.latents + level.sigma * noise),
    ):
        x = d.x
        with torch.no_grad():
            for level, to in zip(d.schedule, d.schedule[1:]):
                x = torch.where(keep, known(level), x)
                x = transition(x, d(x, level, d.cond), level, to, 0.0, None)
        ours = steered(pipe, make(hole(), start)).images
        assert same(ours, torch.where(keep, source.latents, x), 1e-3)
        assert not same(ours, steered(pipe, []).images, 1e-1)


METHODS: dict[str, Method] = {
    "prompt_to_prompt": Method(edit.prompt_to_prompt, prompt_law, prompt_oracle),
    "masactrl": Method(edit.masactrl, masactrl_law, masactrl_oracle),
    "plug_and_play": Method(edit.plug_and_play, plug_law, plug_oracle),
    "inpaint": Method(edit.inpaint, inpaint_law, inpaint_oracle),
}
