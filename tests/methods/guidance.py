"""Laws and oracles of the guidance methods.

Law: at the strength where a method does nothing it is plain guidance, or the conditional branch alone, at no further
row. Oracle: the paper's update written out, the code of diffusers, or the classes of a Gaussian mixture.
"""

from __future__ import annotations

import diffusers.guiders as theirs
import torch
from methods import guidance_concepts, guidance_layers
from methods.guidance_toys import (
    SCHEDULE,
    STEPS,
    Classes,
    asking,
    guided,
    noise,
    part,
    plus_plus,
    runs_as,
    same,
    two_classes,
)
from methods.method import Method

from steer import guidance
from steer.diffusion.controllers.guidance.branches import ASKED, FREE, evaluate
from steer.diffusion.denoise import GaussianMixture, from_x0
from steer.diffusion.schedule import flow, karras, vp
from steer.diffusion.solve import ddim

SCHEDULES = (vp(20), flow(20), karras(20, sigma_max=20.0))


def one_step(guide, level=None, count: int = 16):
    """(x, level, x0 of both branches, x0 under the guide) at one level of a run."""
    level = SCHEDULE[7] if level is None else level
    denoiser, cond, x = Classes(two_classes()), asking(*(1,) * count), noise(count)
    return x, level, evaluate(denoiser, x, level, cond, (FREE, ASKED)), guide.wrap(denoiser)(x, level, cond)


def alone(guide) -> None:
    """The conditional branch alone, bit for bit, at one row."""
    state, plain = guided(guide), guided((), cond={"class": asking(*(1,) * 64)["class"][:, 1:]})
    assert torch.equal(state.x, plain.x)
    assert state.run.ledger.rows == plain.run.ledger.rows == 64 * STEPS


def cfg_law(make) -> None:
    alone(make(1.0))
    runs_as(make(3.0), (), rows=2)


def cfg_oracle(make) -> None:
    """The score of p(x) p(c | x)^w, by autograd through the exact densities."""
    x, level, _, ours = one_step(make(3.0))
    x = x.clone().requires_grad_()
    prior, asked = two_classes(), part(two_classes(), 1)
    (score,) = torch.autograd.grad((3 * asked.log_prob(x, level) - 2 * prior.log_prob(x, level)).sum(), x)
    assert same(ours, ((x + level.sigma**2 * score) / level.alpha).detach())


def interval_law(make) -> None:
    state = guided(make(guidance.cfg(3.0), progress=(0.25, 0.75)))
    assert state.run.ledger.rows == 64 * (STEPS + STEPS // 2)
    alone(make(guidance.cfg(3.0), noise=(1e6, 1e7)))
    runs_as(make(guidance.cfg(3.0)), guidance.cfg(3.0), rows=2)
    part = {"progress": (0.25, 0.75)}
    runs_as(make(**part), make(guidance.cfg(3.0), **part))  # the guidance of `Classes` has weight 3


def interval_oracle(make) -> None:
    """Step by step: the guided branch inside, the conditional one outside."""
    guide, denoiser, cond = make(guidance.cfg(3.0), noise=(0.3, 2.0)), Classes(two_classes()), asking(*(1,) * 8)
    inside = []
    for level in SCHEDULE[:-1]:
        free, asked = evaluate(denoiser, noise(8), level, cond, (FREE, ASKED))
        inside.append(0.3 < level.sigma / level.alpha <= 2.0)
        expected = free + 3 * (asked - free) if inside[-1] else asked
        assert same(guide.wrap(denoiser)(noise(8), level, cond), expected)
        assert denoiser.calls[-1] == (16 if inside[-1] else 8)
    assert len(set(inside)) == 2


def cfg_pp_law(make) -> None:
    for schedule in SCHEDULES:
        options = {"schedule": schedule, "solver": ddim(0.0)}
        free = guided(make(0.0, schedule), **options)
        assert same(free.x, guided(guidance.cfg(0.0), **options).x)
        assert free.run.ledger.rows == 64 * STEPS


def cfg_pp_oracle(make) -> None:
    for schedule in SCHEDULES:
        for eta in (0.0, 0.5, 1.0):
            state = guided(make(0.6, schedule, eta), schedule=schedule, solver=ddim(eta))
            assert same(state.x, plus_plus(0.6, schedule, eta))
            assert state.run.ledger.rows == 2 * 64 * STEPS
            assert not same(state.x, guided(guidance.cfg(0.6), schedule=schedule, solver=ddim(eta)).x, 1e-2)


def by_hand(guide, guider, space: str) -> None:
    """One evaluation under the guide is the guider's own answer to the two predictions."""
    x, level, (free, asked), ours = one_step(guide)
    guider.set_state(1, None, None)
    predictions = {"pred_cond": from_x0(asked, x, level, space), "pred_uncond": from_x0(free, x, level, space)}
    answer = guider([_Block(guider, name, prediction) for name, prediction in predictions.items()]).pred
    assert same(from_x0(ours, x, level, space), answer)
    assert not same(ours, asked, 1e-3)


class _Block:
    def __init__(self, guider, name, prediction):
        self.noise_pred = prediction
        setattr(self, guider._identifier_key, name)


def from_diffusers_law(make) -> None:
    for guider in (theirs.ClassifierFreeGuidance(3.0), theirs.AdaptiveProjectedGuidance(3.0, None, 0.0, eta=1.0)):
        runs_as(make(guider), guidance.cfg(3.0), rows=2)
        runs_as(make(guider, "flow_prediction"), guidance.cfg(3.0), rows=2)
    runs_as(make(theirs.ClassifierFreeGuidance(1.0)), guidance.cfg(1.0), rows=1)


def from_diffusers_oracle(make) -> None:
    for space in ("epsilon", "v_prediction", "flow_prediction", "sample"):
        for guider in (
            theirs.ClassifierFreeGuidance(3.0, 0.7),
            theirs.ClassifierFreeZeroStarGuidance(3.0),
            theirs.AdaptiveProjectedGuidance(3.0, None, 0.5, eta=0.0),
            theirs.AdaptiveProjectedMixGuidance(3.0),
            theirs.MagnitudeAwareGuidance(3.0),
            theirs.TangentialClassifierFreeGuidance(3.0),
        ):
            by_hand(make(guider, space), guider, space)


def apg_law(make) -> None:
    runs_as(make(3.0, eta=1.0, norm=0.0, momentum=0.0), guidance.cfg(3.0), rows=2)
    runs_as(make(3.0, eta=1.0, norm=1e9, momentum=0.0), guidance.cfg(3.0))
    alone(make(1.0))


def apg_oracle(make) -> None:
    """The paper's algorithm 1, over a whole run on the toy's x0, momentum and norm included."""
    weight, eta, norm, momentum = 4.0, 0.3, 1.5, -0.5
    average, denoiser, cond = 0.0, Classes(two_classes()), asking(*(1,) * 64)

    def paper(x, level, _):
        nonlocal average
        free, asked = evaluate(denoiser, x, level, cond, (FREE, ASKED))
        average = asked - free + momentum * average
        apart = average * (norm / average.norm(dim=1, keepdim=True)).clamp(max=1)
        along = asked / asked.norm(dim=1, keepdim=True)
        parallel = (apart * along).sum(1, keepdim=True) * along
        return asked + (weight - 1) * (apart - parallel + eta * parallel)

    ours = guided(make(weight, eta, norm, momentum))
    assert same(ours.x, guided(denoiser=paper).x)
    assert not same(ours.x, guided(make(weight, eta, norm, 0.0)).x, 1e-2)


def cfg_zero_law(make) -> None:
    """Where nothing is asked beside the prompt, s = 1; and a zero first step stands still in a flow."""
    one = {"cond": asking(*(1,) * 64, free=1), "schedule": flow(20)}
    runs_as(make(3.0, zero_steps=0), guidance.cfg(1.0), tolerance=1e-5, **one)
    x, _, _, ours = one_step(make(3.0), flow(20)[0])
    assert same(ours, x)  # (x - x0) / sigma = 0


def cfg_zero_oracle(make) -> None:
    x, level, (free, asked), ours = one_step(make(3.0), flow(20)[7])
    u, c = ((x - x0) / level.sigma for x0 in (free, asked))
    s = (c * u).sum(1, keepdim=True) / u.square().sum(1, keepdim=True)
    assert same(ours, x - level.sigma * (s * u + 3 * (c - s * u)), 1e-5)


def tangential_law(make) -> None:
    runs_as(make(3.0), guidance.cfg(1.0), cond=asking(*(1,) * 64, free=1), tolerance=1e-4)


def tangential_oracle(make) -> None:
    """u keeps only what lies along the first singular vector of the pair, found here from its 2 x 2 Gram matrix."""
    x, level, branches, ours = one_step(make(3.0))
    free, asked = (from_x0(x0, x, level, "epsilon") for x0 in branches)
    pair = torch.stack([asked, free], 1)
    _, mixing = torch.linalg.eigh(pair @ pair.mT)
    along = torch.nn.functional.normalize((mixing[:, :, -1:] * pair).sum(1), dim=-1)
    kept = (free * along).sum(1, keepdim=True) * along
    assert same(from_x0(ours, x, level, "epsilon"), kept + 3 * (asked - kept), 1e-4)


def rescaled_law(make) -> None:
    runs_as(make(3.0, 0.0), guidance.cfg(3.0), rows=2)


def rescaled_oracle(make) -> None:
    """With all of it the guided prediction has exactly the spread of the conditional one."""
    x, level, (free, asked), ours = one_step(make(3.0, 1.0))
    spread, wanted = (from_x0(x0, x, level, "epsilon").std(1) for x0 in (ours, asked))
    assert same(spread, wanted)
    assert not same(from_x0(free + 3 * (asked - free), x, level, "epsilon").std(1), wanted, 0.1)


class Maps:
    """Answers with pictures (1, 16, 16): unconditionally black, conditionally 1 with stripes of +-1, a pixel wide."""

    free = torch.zeros(1, 16, 16)
    asked = 1 + (torch.arange(16).remainder(2) * 2.0 - 1).expand(1, 16, 16)

    def __call__(self, x, level, cond):
        return torch.where((cond["class"] == 1)[:, :, None, None], self.asked, self.free)


def pictures(guide):
    return guide.wrap(Maps())(torch.zeros(1, 1, 16, 16), SCHEDULE[7], asking(1))[0, 0]


def frequency_law(make) -> None:
    assert same(pictures(make(3.0, 3.0)), pictures(guidance.cfg(3.0)), 1e-6)


def frequency_oracle(make) -> None:
    """A constant is all low and, away from the edges, a stripe of one pixel is all high: each gets its own weight."""
    found, stripes = pictures(make(2.0, 5.0)), Maps.asked[0] - 1
    assert same(found[4:-4, 4:-4], (2.0 + 5.0 * stripes)[4:-4, 4:-4], 1e-5)


def autoguidance_law(make) -> None:
    weak = Classes(two_classes())
    alone(make(weak, 1.0))
    assert weak.calls == []
    runs_as(make(Classes(two_classes()), 2.5), guidance.cfg(1.0), rows=2)  # no weaker than the other: no change


def autoguidance_oracle(make) -> None:
    """Against the same classes twice as wide: x0 is extrapolated, and the samples come closer together."""
    wide = GaussianMixture(two_classes().means, 2 * two_classes().stds, two_classes().weights)
    x, level, _, ours = one_step(make(Classes(wide), 2.0))
    one = {"class": torch.ones(len(x), 1, dtype=torch.long)}
    strong, weak = (Classes(prior)(x, level, one) for prior in (two_classes(), wide))
    assert same(ours, 2 * strong - weak)
    spread = [guided(make(Classes(wide), weight)).x.std(0).mean() for weight in (1.0, 2.0)]
    assert spread[1] < 0.8 * spread[0]


METHODS: dict[str, Method] = {
    "cfg": Method(guidance.cfg, cfg_law, cfg_oracle),
    "interval": Method(guidance.interval, interval_law, interval_oracle),
    "cfg_pp": Method(guidance.cfg_pp, cfg_pp_law, cfg_pp_oracle),
    "from_diffusers": Method(guidance.from_diffusers, from_diffusers_law, from_diffusers_oracle),
    "apg": Method(guidance.apg, apg_law, apg_oracle),
    "cfg_zero": Method(guidance.cfg_zero, cfg_zero_law, cfg_zero_oracle),
    "tangential": Method(guidance.tangential, tangential_law, tangential_oracle),
    "rescaled": Method(guidance.rescaled, rescaled_law, rescaled_oracle),
    "frequency_decoupled": Method(guidance.frequency_decoupled, frequency_law, frequency_oracle),
    "autoguidance": Method(guidance.autoguidance, autoguidance_law, autoguidance_oracle),
    "nag": Method(guidance.nag, guidance_layers.nag_law, guidance_layers.nag_oracle),
    "pag": Method(guidance.pag, guidance_layers.pag_law, guidance_layers.pag_oracle),
    "seg": Method(guidance.seg, guidance_layers.seg_law, guidance_layers.seg_oracle),
    "slg": Method(guidance.slg, guidance_layers.slg_law, guidance_layers.slg_oracle),
    **guidance_concepts.METHODS,
}
