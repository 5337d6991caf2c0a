"""Laws and oracles of the guidance methods that take further prompts, on a mixture whose components are prompts."""

from __future__ import annotations

from methods.guidance_toys import STEPS, Classes, asking, concept, guided, near, runs_as, same, two_classes
from methods.method import Method

from steer import guidance
from steer.diffusion.controllers.guidance.branches import ASKED, FREE, evaluate
from steer.diffusion.denoise import from_x0


def sld_law(make) -> None:
    runs_as(make(3.0, concept(0), scale=0.0), guidance.cfg(3.0), rows=2)
    state = guided(make(3.0, concept(0)))
    assert state.run.ledger.rows == 3 * 64 * STEPS
    no_momentum = guided(make(3.0, concept(0), momentum=0.0, warmup=0.5))
    assert no_momentum.run.ledger.rows == 64 * (3 * 10 + 2 * 10)


def sld_oracle(make) -> None:
    """A whole run by the `perform_safety_guidance` of diffusers' safe pipeline."""
    from diffusers.pipelines.deprecated.stable_diffusion_safe.pipeline_stable_diffusion_safe import (
        StableDiffusionPipelineSafe,
    )

    cond, denoiser, memory, steps = asking(*(1,) * 64), Classes(two_classes()), None, iter(range(STEPS))

    def safe(x, level, _):
        nonlocal memory
        found = evaluate(denoiser, x, level, cond, (FREE, ASKED, 2), (concept(0),))
        free, asked, unsafe = (from_x0(x0, x, level, "epsilon") for x0 in found)
        push, memory = StableDiffusionPipelineSafe.perform_safety_guidance(
            None, True, memory, asked - free, [asked, free, unsafe], next(steps), 2.0, 4, 0.02, 0.3, 0.4
        )
        return (x - level.sigma * (free + 3.0 * push)) / level.alpha

    ours = guided(make(3.0, concept(0), 2.0, 0.02))
    assert same(ours.x, guided(denoiser=safe).x)
    assert not same(ours.x, guided(guidance.cfg(3.0)).x, 1e-2)


def sega_law(make) -> None:
    runs_as(make(3.0, [concept(0)], [0.0]), guidance.cfg(3.0), rows=2)
    plain = make(1.0, [concept(0)], [2.0], quantile=0.0, warmup=0.0, momentum=0.0)
    found = guided(plain, labels=(1,) * 400)  # c + 2 (e - u) all over: class 0 is asked for as well
    assert near(found, 0) > near(guided(guidance.cfg(1.0), labels=(1,) * 400), 0) + 0.3


def sega_oracle(make) -> None:
    """Equation by equation, momentum included, on the larger half of the coordinates."""
    cond, denoiser, memory = asking(*(1,) * 64), Classes(two_classes()), 0.0

    def semantic(x, level, _):
        nonlocal memory
        found = evaluate(denoiser, x, level, cond, (FREE, ASKED, 2), (concept(0),))
        free, asked, edit = (from_x0(x0, x, level, "epsilon") for x0 in found)
        way = -1.5 * (edit - free)
        larger = way.abs() == way.abs().amax(1, keepdim=True)
        push = way * larger + 0.1 * memory
        memory = 0.4 * memory + 0.6 * push
        guided = free + 3.0 * (asked - free) + (push if level.progress >= 0.2 else 0)
        return (x - level.sigma * guided) / level.alpha

    ours = guided(make(3.0, [concept(0)], [-1.5], quantile=0.9))
    assert same(ours.x, guided(denoiser=semantic).x)
    assert not same(ours.x, guided(guidance.cfg(3.0)).x, 1e-2)


def late_law(make) -> None:
    runs_as(make(3.0, concept(0), erase=0.0), guidance.cfg(3.0), rows=2)
    state = guided(make(3.0, concept(0), start=0.7))
    assert state.run.ledger.rows == 64 * (2 * 14 + 3 * 6)
    runs_as(make(2.0, concept(1), erase=5.0, start=0.0), guidance.cfg(-3.0))


def late_oracle(make) -> None:
    """Erasing class 0 while nothing is asked for: the earlier, the fewer samples of it are left; never, a half."""
    labels, left = (0,) * 400, []
    for start in (0.0, 0.5, 0.7, 0.9):
        left.append(near(guided(make(0.0, concept(0), erase=2.0, start=start), labels=labels), 0))
    assert left == sorted(left)
    assert left[0] < 0.05
    assert left[2] > 0.2
    assert abs(near(guided(guidance.cfg(0.0), labels=labels), 0) - 0.5) < 0.08
    reversed_ = guided(make(1.0, erase=2.0, start=0.4), labels=labels)
    assert near(reversed_, 0) < 0.9 < near(guided(guidance.cfg(1.0), labels=labels), 0)


METHODS: dict[str, Method] = {
    "sld": Method(guidance.sld, sld_law, sld_oracle),
    "sega": Method(guidance.sega, sega_law, sega_oracle),
    "late_negative": Method(guidance.late_negative, late_law, late_oracle),
}
