"""Laws and oracles of the composition methods, on a tiny Stable Diffusion pipeline.

Law: at strength zero nothing happens, bit for bit, the ledger is exact, and the loss that is gone down falls. Oracle:
diffusers' own pipeline where it has one, else the paper's update by hand, from projections of the network's own layers.
"""

from __future__ import annotations

import math
from functools import partial
from unittest import mock

import tiny
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.deprecated import StableDiffusionAttendAndExcitePipeline
from methods.guidance_toys import same
from methods.method import Method

from steer import Controller, Steered
from steer.diffusion.controllers import compose
from steer.diffusion.controllers.compose import losses
from steer.diffusion.controllers.gradients.value import OwnNoise

PROMPT, STEPS = "a cat and dog", 5
ASK = {"num_inference_steps": STEPS, "output_type": "latent", "guidance_scale": 3.0}


def pipeline():
    return tiny.pipeline(DDIMScheduler(clip_sample=False))


def run(pipe, controllers=(), prompt: str = PROMPT, n: int = 1, **kwargs):
    """The steered result, and every state that a last controller saw."""
    watch = tiny.Watch()
    chain = [*([controllers] if isinstance(controllers, Controller) else controllers), watch]
    return Steered(pipe, chain)(prompt, n=n, generator=tiny.generator(), **{**ASK, **kwargs}), watch.states


def attributes(network) -> list:
    return [(sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]


def costs(controller, pipe, extra: int, repeated: int = 0) -> list:
    """One particle's rows: the plain run's, `extra` forward and backward ones, and some evaluations made again."""
    before = attributes(pipe.unet)
    out, states = run(pipe, controller)
    assert (out.ledger.rows, out.ledger.backward_rows) == (2 * (STEPS + repeated) + extra, extra)
    assert attributes(pipe.unet) == before
    return states


def idle(controller, pipe) -> None:
    plain, _ = run(pipe)
    out, _ = run(pipe, controller)
    assert torch.equal(out.images, plain.images)
    assert (out.ledger.rows, out.ledger.backward_rows) == (plain.ledger.rows, 0)


def loss_at(pipe, state, loss) -> float:
    """A loss at a state's x, by hand."""
    (cat, dog) = (2, 3, 4), (8, 9, 10)
    words = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    with torch.no_grad():
        return float(loss(entities_by_hand(pipe.unet, state.x[:1], state.level.t, words, (cat, dog))))


def entities_by_hand(unet, x, t, words, places, factor: float = 100.0):
    """(1, entities, h, w) shares of attention, from what the layers project."""
    found = []

    def note(module, args, kwargs):
        q = module.head_to_batch_dim(module.to_q(args[0]))
        k = module.head_to_batch_dim(module.to_k(kwargs["encoder_hidden_states"]))
        maps = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1).mean(0)
        side = math.isqrt(len(maps))
        found.append(maps.T.reshape(-1, side, side))

    layers = [m for name, m in unet.named_modules() if name.endswith("attn2")]
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    unet(x, t, encoder_hidden_states=words)
    for handle in handles:
        handle.remove()
    shares = torch.softmax(factor * torch.stack(found).mean(0)[1:-1], 0)
    return torch.stack([shares[[p - 1 for p in place]].mean(0) for place in places])[None]


def excite_law(make) -> None:
    pipe = pipeline()
    with_it = partial(make, pipe.unet, pipe.tokenizer)
    idle(with_it(strength=0.0), pipe)
    states = costs(with_it(strength=2.0, thresholds={}), pipe, 3)  # progress 0, 0.2 and 0.4 of 5 steps
    costs(with_it(strength=1e-6, thresholds={0.2: 1.0}), pipe, 3 + 20)  # a peak that is never reached
    costs(with_it(strength=1e-6, thresholds={0.2: 0.0}), pipe, 3)  # one that is always
    before, after = run(pipe)[1], states
    assert loss_at(pipe, after[0], losses.excite) < loss_at(pipe, before[0], losses.excite)


def excite_oracle(make) -> None:
    """diffusers' pipeline for it, whose kernel exp(-(d / (2 sigma))^2) is a Gaussian of sigma sqrt(2)."""
    prompt, pipe = "x and y", pipeline()
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    theirs = StableDiffusionAttendAndExcitePipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    options = {"attn_res": (4, 4), "max_iter_to_alter": 3, "scale_factor": 100, "thresholds": {1: 1.0}}
    expected = theirs(prompt, [1, 5], generator=tiny.generator(), **ASK, **options).images
    pipe = pipeline()  # theirs leaves its processors behind
    entities = partial(compose.constraints, entities=["x", "y"])
    ours = make(pipe.unet, pipe.tokenizer, 100.0, thresholds={0.2: 1.0}, parse=entities)
    with mock.patch.object(losses, "blur", partial(losses.blur, sigma=math.sqrt(0.5))):
        out, _ = run(pipe, ours, prompt)
    assert same(out.images, torch.as_tensor(expected), 1e-4)
    assert not same(out.images, run(pipe, (), prompt)[0].images, 1e-2)


def aligned_law(make) -> None:
    pipe = pipeline()
    with_it = partial(make, pipe.unet, pipe.tokenizer)
    idle(with_it(strength=0.0), pipe)
    states = costs(with_it(strength=1.0), pipe, 3)
    assert loss_at(pipe, states[0], losses.mixing) < loss_at(pipe, run(pipe)[1][0], losses.mixing)


def aligned_oracle(make) -> None:
    """x - strength sqrt(r) grad at the first steps, by hand: missing + mixing at factor 1."""
    pipe, plain = pipeline(), run(pipeline())[1]
    words = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    x = plain[0].x.clone().requires_grad_()
    maps = entities_by_hand(pipe.unet, x, plain[0].level.t, words, ((2, 3, 4), (8, 9, 10)), 1.0)
    (gradient,) = torch.autograd.grad((losses.missing(maps) + losses.mixing(maps)).sum(), x)
    states = run(pipe, make(pipe.unet, pipe.tokenizer, 2.0))[1]
    assert same(states[0].x, plain[0].x - 2.0 * gradient, 1e-5)
    assert gradient.abs().max() > 1e-3


def saga_law(make) -> None:
    pipe = pipeline()
    with_it = partial(make, pipe.unet, pipe.tokenizer)
    idle(with_it(iterations=0), pipe)
    states = costs(with_it(iterations=8, noises=3, lr=2.0), pipe, 8 * 3)
    plain = run(pipe)[1]
    assert torch.equal(states[0].x, plain[0].x)
    assert not same(states[1].x, plain[1].x, 1e-2)


def saga_oracle(make) -> None:
    """SGD with momentum on m, by hand, with the same noises."""
    pipe, plain = pipeline(), run(pipeline())[1]
    words = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    state, (alpha, sigma, t, _) = plain[1], plain[1].level
    clean = alpha * plain[0].x0
    m, velocity, own = clean.mean((-1, -2), keepdim=True).expand_as(clean).clone(), 0.0, OwnNoise(state)

    def rescaled(m):
        return m * torch.minimum(torch.ones(()), clean.std() / m.std())

    for _ in range(3):
        gradient = torch.zeros_like(m)
        for _ in range(2):
            leaf = m.clone().requires_grad_()
            noise = torch.randn(m.shape, generator=own.generators[0])
            maps = entities_by_hand(pipe.unet, rescaled(leaf) + sigma * noise, t, words, ((2, 3, 4), (8, 9, 10)))
            gradient += torch.autograd.grad(losses.separate(losses.blur(maps)).sum() / 2, leaf)[0]
        velocity = 0.5 * velocity + gradient
        m = m - 3.0 * velocity
    x = rescaled(m) + sigma * plain[0].x / plain[0].level.sigma
    ours = make(pipe.unet, pipe.tokenizer, iterations=3, noises=2, lr=3.0, momentum=0.5)
    assert same(run(pipe, ours)[1][1].x, x, 1e-4)


def saga_plus_law(make) -> None:
    pipe = pipeline()
    costs(make(pipe.unet, pipe.tokenizer, at=0.2, iterations=2, noises=2), pipe, 2 * 2 + 2)  # steps at 0.2 and 0.4


def boxes_law(make) -> None:
    pipe, boxes = pipeline(), {"cat": (0.0, 0.0, 0.5, 1.0), "dog": (0.5, 0.0, 1.0, 1.0)}
    with_it = partial(make, pipe.unet, pipe.tokenizer, boxes)
    idle(with_it(iterations=0), pipe)
    masks = losses.box_masks(list(boxes.values()), 4, 4)
    states = costs(with_it(iterations=8, noises=2, lr=10.0), pipe, 8 * 2)
    start = costs(with_it(iterations=1, noises=2, lr=1e-9), pipe, 2)
    before, after = (loss_at(pipe, one[1], partial(losses.retention, masks=masks)) for one in (start, states))
    assert after < before


def initno_law(make) -> None:
    pipe = pipeline()
    with_it = partial(make, pipe.unet, pipe.tokenizer)
    idle(with_it(iterations=0), pipe)
    states = costs(with_it(iterations=6, lr=0.05, enough=None), pipe, 6, repeated=1)
    costs(with_it(iterations=6, enough=2.0), pipe, 1, repeated=1)  # the first is good enough
    before = run(pipe)[1]
    sharp = [loss_at(pipe, one[0], lambda maps: losses.excite(losses.blur(maps))) for one in (before, states)]
    assert sharp[1] < sharp[0]


METHODS: dict[str, Method] = {
    "attend_and_excite": Method(compose.attend_and_excite, excite_law, excite_oracle),
    "aligned": Method(compose.aligned, aligned_law, aligned_oracle),
    "compose_initno": Method(compose.initno, initno_law),
    "saga": Method(compose.saga, saga_law, saga_oracle),
    "saga_plus": Method(compose.saga_plus, saga_plus_law),
    "in_boxes": Method(compose.in_boxes, boxes_law),
}
