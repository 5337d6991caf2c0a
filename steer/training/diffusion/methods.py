"""Methods for diffusion models: rewards on what they make, and pictures. Each is a row of parts, with its paper.

Defaults are those of the papers, for models of Stable Diffusion's size. `batch` runs or pictures are in a loss, `rank`
is that of LoRA on attention, `lr` that of AdamW. On-policy methods make `each` runs of `prompts` prompts for every
`updates` losses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from steer.training.diffusion.adapters import lora, oft, whole
from steer.training.diffusion.advantages import over_batch, over_history
from steer.training.diffusion.contrast import Contrast
from steer.training.diffusion.critic import Critic
from steer.training.diffusion.denoising import Denoising, content_first, exponential
from steer.training.diffusion.direct import DirectReward, from_real, hinge, maximise, renoised, sampled, towards
from steer.training.diffusion.erasing import Erasing, salient
from steer.training.diffusion.levels import at_step
from steer.training.diffusion.negative import NegativeAware
from steer.training.diffusion.policy import PolicyGradient
from steer.training.diffusion.regression import RewardDifference
from steer.training.diffusion.rollout import around, from_random, full, last, single
from steer.training.diffusion.soft_tokens import soft_tokens
from steer.training.method import Method, Parametrise, Phase, Select
from steer.training.weights.methods import adamw

DRAFT, OFT = "2309.17400", "2306.07280"


def draft(batch: int = 4, rank: int = 8, lr: float = 4e-4) -> Method:
    """DRaFT: ascends the reward through all steps of the sampler, with checkpointing."""
    return _method(DRAFT, lora(rank), lr, DirectReward, 0.1, make=sampled(full(), batch, checkpointed=True))


def draft_k(k: int = 1, batch: int = 4, rank: int = 8, lr: float = 4e-4) -> Method:
    """DRaFT-K: through the last k steps alone; more than one where the last begins at a sigma below 0.1."""
    return _method(DRAFT, lora(rank), lr, DirectReward, 0.1, make=sampled(last(k), batch))


def draft_lv(n: int = 2, batch: int = 4, rank: int = 8, lr: float = 4e-4) -> Method:
    """DRaFT-LV: through the last step from n new noises a run, which lowers the variance for little more."""
    return _method(DRAFT, lora(rank), lr, DirectReward, 0.1, make=renoised(n, batch))


def alignprop(
    target: float | None = None, gaussian: bool = False, batch: int = 4, rank: int = 4, lr: float = 1e-3
) -> Method:
    """AlignProp: from a random step on, by a run that draws noise; towards a target reward where one is given."""
    make = sampled(around() if gaussian else from_random(), batch, eta=1.0, checkpointed=True)
    head = maximise if target is None else towards(target)
    return _method("2310.03739", lora(rank), lr, DirectReward, make=make, head=head, scale=0.01)


def refl(margin: float = 2.0, start: float = 0.75, batch: int = 4, lr: float = 1e-5) -> Method:
    """ReFL: x0 at one random late step, unguided, with a hinge on the reward; all weights of the network."""
    make = sampled(single(start), batch, guided=False)
    return _method("2304.05977", whole(), lr, DirectReward, make=make, head=hinge(margin), scale=1e-3)


def imagerefl(start: float = 0.75, anchor: float = 0.01, batch: int = 4, rank: int = 8, lr: float = 3e-4) -> Method:
    """ImageReFL: the same from noised real pictures, and their denoising loss; sampled by `combined`."""
    anchors = partial(Denoising, batch=batch, levels=1, at=at_step(start), dropout=0.0)
    dials = {"make": from_real(single(start), start, batch), "scale": 1e-3, "anchor": anchor, "anchors": anchors}
    return _method("2505.22569", lora(rank), lr, DirectReward, **dials)


def ddpo(
    prompts: int = 4, each: int = 4, updates: int = 1, clip: float = 1e-4, rank: int = 4, lr: float = 3e-4
) -> Method:
    """DDPO: policy gradient over the steps of runs that draw noise; any reward."""
    dials = {**_runs(prompts, each, updates), "clip": clip, "advantage": over_history()}
    return _method("2305.13301", lora(rank), lr, PolicyGradient, **dials)


def dpok(
    prompts: int = 1,
    each: int = 10,
    updates: int = 5,
    weight: float = 10.0,
    kl: float = 0.01,
    rank: int = 4,
    lr: float = 1e-5,
) -> Method:
    """DPOK: DDPO with a value network, a penalty for leaving the model, and a few steps of two batches a loss."""
    dials = {**_runs(prompts, each, updates), "weight": weight, "kl_weight": kl}
    return _method("2305.16381", lora(rank), lr, PolicyGradient, **dials, critic=Critic, share=0.1, replay=2)


def texforce(
    prompts: int = 4, each: int = 4, updates: int = 1, clip: float = 1e-4, rank: int = 16, lr: float = 3e-4
) -> Method:
    """TexForce: DDPO of the text encoder alone."""
    dials = {**_runs(prompts, each, updates), "clip": clip, "advantage": over_batch(10.0)}
    return _method("2311.15657", lora(rank, "text"), lr, PolicyGradient, **dials)


def prdp(
    prompts: int = 4,
    each: int = 4,
    updates: int = 4,
    beta: float = 1.0,
    clip: float = 1e-4,
    shared: bool = False,
    rank: int = 8,
    lr: float = 1e-4,
) -> Method:
    """PRDP: regresses differences of log-ratios on differences of rewards, between runs of one prompt."""
    dials = {**_runs(prompts, each, updates), "beta": beta, "clip": clip, "shared": shared}
    return _method("2402.08714", lora(rank), lr, RewardDifference, **dials)


def nft(
    prompts: int = 4,
    each: int = 8,
    updates: int = 2,
    mix: float = 1.0,
    kl: float = 1e-4,
    rank: int = 32,
    lr: float = 3e-4,
) -> Method:
    """DiffusionNFT: to good samples and away from bad ones in the forward process; no guidance, no likelihoods."""
    dials = {**_runs(prompts, each, updates), "mix": mix, "kl_weight": kl}
    return _method("2509.16117", lora(rank), lr, NegativeAware, **dials)


def sft(batch: int = 8, levels: int = 4, rank: int = 8, lr: float = 1e-4) -> Method:
    """The denoising loss on the task's pictures."""
    return _method("2112.10752", lora(rank), lr, Denoising, batch=batch, levels=levels)


def weighted_sft(temperature: float = 1.0, batch: int = 8, levels: int = 4, rank: int = 8, lr: float = 1e-4) -> Method:
    """The same, each picture weighted by exp(reward / temperature)."""
    weights = exponential(temperature)
    return _method("2302.12192", lora(rank), lr, Denoising, batch=batch, levels=levels, weights=weights)


def emu(offset: float = 0.1, batch: int = 8, levels: int = 4, lr: float = 1e-5) -> Method:
    """Emu's quality tuning: all weights, few and good pictures, an offset in the noise; stop early."""
    return _method("2309.15807", whole(), lr, Denoising, batch=batch, levels=levels, offset=offset)


def style_tailoring(
    until: float = 0.1, offset: float = 0.1, batch: int = 8, levels: int = 4, lr: float = 1e-5
) -> Method:
    """Style Tailoring: noisy levels learn from the task's content, cleaner ones from its pictures of the style."""
    dials = {"batch": batch, "levels": levels, "offset": offset, "source": content_first(until)}
    return _method("2311.10794", whole(), lr, Denoising, **dials)


def oft_sft(block: int = 8, batch: int = 8, levels: int = 4, lr: float = 1e-4) -> Method:
    """OFT: the denoising loss with orthogonal rotations of what goes into attention."""
    return _method(OFT, oft(block), lr, Denoising, batch=batch, levels=levels)


def coft_sft(block: int = 8, constraint: float = 1e-3, batch: int = 8, levels: int = 4, lr: float = 1e-4) -> Method:
    """COFT: the same, with rotations held near the identity."""
    return _method(OFT, oft(block, constraint), lr, Denoising, batch=batch, levels=levels)


def softrepa(
    tokens: int = 4, layers: int = 5, bins: int = 100, denoising: float = 0.0, batch: int = 4, lr: float = 1e-3
) -> Method:
    """SoftREPA: a few tokens in the frozen network, trained to tell a picture's own caption from the others."""
    return _method("2503.08250", soft_tokens(tokens, layers, bins), lr, Contrast, batch=batch, denoising=denoising)


def ant(
    concept: str = "heart",
    switch: float = 0.14,
    share: float = 0.5,
    keep: float = 1.0,
    free: float = 0.5,
    batch: int = 1,
    losses: int = 10,
    seeds: int = 5,
    lr: float = 5e-4,
) -> Method:
    """ANT: unlearns a concept in the weights that matter to it, kept before the switch and reversed after it."""
    dials = {"concept": concept, "switch": switch, "keep": keep, "free": free, "batch": batch}
    select = salient(partial(Erasing, **dials), share, losses, seeds)
    return _method("2504.12782", whole(), lr, Erasing, 0.0, select, **dials)


def _method(
    paper: str,
    parametrise: Parametrise,
    lr: float,
    objective: Callable[..., Any],
    decay: float = 1e-4,
    select: Select | None = None,
    **dials: Any,
) -> Method:
    return Method(paper, (Phase(partial(objective, **dials), adamw(lr, decay), parametrise, select),))


def _runs(prompts: int, each: int, updates: int) -> dict[str, Any]:
    return {"prompts": prompts, "each": each, "updates": updates, "checkpointed": True}


METHODS: dict[str, Callable[..., Method]] = {
    row.__name__: row
    for row in (
        *(draft, draft_k, draft_lv, alignprop, refl, imagerefl, ddpo, dpok, texforce, prdp, nft),
        *(sft, weighted_sft, emu, style_tailoring, oft_sft, coft_sft, softrepa, ant),
    )
}
