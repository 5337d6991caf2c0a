"""Guidance by name: every function returns a controller, which takes the place of the pipeline's own guidance.

>>> steer.Steered(pipe, steer.guidance.apg(7.5))("a red apple", n=1, guidance_scale=2)   # any scale above 1

Below, u and c are the unconditional and the conditional prediction, and w the weight; w = 1 is c alone. A function that
has a `space` combines predictions of that kind ("epsilon", "v_prediction", "flow_prediction", "sample" for x0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from steer.diffusion.control import Denoiser
from steer.diffusion.controllers.guidance.attention import PerturbedAttention
from steer.diffusion.controllers.guidance.branches import Cond
from steer.diffusion.controllers.guidance.concepts import Away, Edit
from steer.diffusion.controllers.guidance.core import Guide, Interval, Limited, Rule
from steer.diffusion.controllers.guidance.diffusers import Guider
from steer.diffusion.controllers.guidance.layers import SkippedLayers
from steer.diffusion.controllers.guidance.normalized import NormalizedAttention
from steer.diffusion.controllers.guidance.rules import Against, Cfg, CfgPlusPlus, Frequencies, LateNegative, LateReverse
from steer.diffusion.controllers.guidance.weak import Instead
from steer.diffusion.state import Level

__all__ = [
    "Guide",
    "Interval",
    "Rule",
    "apg",
    "autoguidance",
    "cfg",
    "cfg_pp",
    "cfg_zero",
    "frequency_decoupled",
    "from_diffusers",
    "interval",
    "late_negative",
    "nag",
    "pag",
    "rescaled",
    "seg",
    "sega",
    "sld",
    "slg",
    "tangential",
]


def cfg(weight: float) -> Guide:
    """Classifier-free guidance, u + w (c - u) (arXiv 2207.12598); weight 1 evaluates c alone, one row a particle."""
    return Guide(Cfg(weight))


def interval(
    guide: Guide | None = None,
    progress: tuple[float, float] = (0.0, 1.0),
    noise: tuple[float, float] = (0.0, math.inf),
) -> Guide | Limited:
    """The guide in a limited interval (arXiv 2404.07724); outside of it c alone is evaluated, at one row a particle.

    guide     None: the guidance that the pipeline has anyway, with the weight that it is called with
    progress  start <= fraction of the run < stop
    noise     low < sigma / alpha <= high, the paper's unit
    Raises ValueError for an empty interval.
    """
    when = Interval(progress, noise)
    return Limited(when) if guide is None else replace(guide, when=when)


def cfg_pp(strength: float, schedule: Sequence[Level], eta: float = 0.0) -> Guide:
    """CFG++ (arXiv 2406.08070): x0 = u + l (c - u), renoised with the noise of u; 0 <= l <= 1, the paper's 0.6.

    schedule  the levels of the run, as `denoiser_of(pipe, prompt, num_inference_steps=...).schedule` holds them
    eta       the noise dial of the run

    It is done exactly, for diffusion and for flow, by the CFG weight that has the same step: see `CfgPlusPlus`. The x0
    that a search or a reward sees is u + w (c - u) with that weight, as under guidance w, not u + l (c - u).
    Raises ValueError for l outside [0, 1] and eta outside [0, 1]; in a run with another schedule or eta, and for
    solvers that are not of first order.
    """
    if not (0 <= strength <= 1 and 0 <= eta <= 1):
        raise ValueError(
            f"cfg_pp(strength={strength}, eta={eta}): expected both in [0, 1]; strength is no guidance scale; the "
            "paper takes 0.6."
        )
    return Guide(CfgPlusPlus(strength, eta, tuple(schedule)))


def from_diffusers(guider: Any, space: str = "epsilon") -> Guide:
    """A guider of diffusers that is arithmetic on (c, u): its own code, in any pipeline and solver that steer drives.

    diffusers itself has guiders for modular pipelines alone, none of them Stable Diffusion 1.x or PixArt.
    Raises ValueError for a guider that perturbs the network, and for one with a start or stop: see `interval`.
    """
    return Guide(Guider(guider), space)


def apg(weight: float, eta: float = 0.0, norm: float = 15.0, momentum: float = -0.5) -> Guide:
    """Adaptive projected guidance (arXiv 2410.02416), on x0 as in the paper: c + (w - 1) (d_o + eta d_p).

    d = c - u + momentum (the d before), shortened to `norm`; d_p is its part along c, d_o the rest. The paper's norm
    for SDXL is 15; 0 does not shorten. eta = 1 without norm and momentum is `cfg`. With a momentum it goes with no
    search between steps.
    """
    from diffusers.guiders import AdaptiveProjectedGuidance

    guider = AdaptiveProjectedGuidance(
        guidance_scale=weight - 1,
        adaptive_projected_guidance_momentum=momentum or None,
        adaptive_projected_guidance_rescale=norm,
        eta=eta,
        use_original_formulation=True,  # from c, which is the paper's; from u it would also lose the parallel part of d
    )
    return Guide(Guider(guider))


def cfg_zero(weight: float, zero_steps: int = 1, space: str = "flow_prediction") -> Guide:
    """CFG-Zero* (arXiv 2503.18886): s u + w (c - s u) with s = <c, u> / |u|^2, and velocity 0 for the first steps."""
    from diffusers.guiders import ClassifierFreeZeroStarGuidance

    return Guide(Guider(ClassifierFreeZeroStarGuidance(weight, zero_init_steps=zero_steps)), space)


def tangential(weight: float, space: str = "epsilon") -> Guide:
    """Tangential guidance (arXiv 2503.18137): u without its part along the second singular vector of (c, u)."""
    from diffusers.guiders import TangentialClassifierFreeGuidance

    return Guide(Guider(TangentialClassifierFreeGuidance(weight)), space)


def rescaled(weight: float, rescale: float = 0.7, space: str = "epsilon") -> Guide:
    """Guidance with its spread pulled back to that of c by `rescale` in [0, 1] (arXiv 2305.08891, section 3.4)."""
    from diffusers.guiders import ClassifierFreeGuidance

    return Guide(Guider(ClassifierFreeGuidance(weight, guidance_rescale=rescale)), space)


def frequency_decoupled(low: float, high: float) -> Guide:
    """Frequency-decoupled guidance (arXiv 2506.19713), two bands: weight `low` for structure, `high` for detail.

    For more bands install kornia and use `from_diffusers(FrequencyDecoupledGuidance(...))`.
    Raises ValueError in a run of anything but (b, c, h, w).
    """
    return Guide(Frequencies(low, high))


def autoguidance(weak: Denoiser, weight: float = 2.0) -> Guide:
    """AutoGuidance (arXiv 2406.02507): weak + w (c - weak), where `weak` is a smaller or less trained network.

    weak  (x, level, cond of the conditional branch alone) -> x0, for example `denoiser_of(small_pipe, prompt)`; its
          rows are counted. Needs no unconditional branch
    """
    return Guide(Against(1.0, weight - 1), weak=Instead(weak))


def nag(network: nn.Module, scale: float = 5.0, tau: float = 2.5, alpha: float = 0.25) -> NormalizedAttention:
    """Normalized attention guidance (arXiv 2505.21179): c, its cross-attention pushed away from the negative prompt.

    z' = z + (scale - 1) (z - z_n), shortened to tau |z|_1, is mixed in by `alpha`; z and z_n are read from the prompt
    and the negative prompt. scale = 1 or alpha = 0 is c alone. Made for few-step models, which have no room for `cfg`.

    network  the pipeline's own, one whose cross-attention takes the prompt's embedding as it is: a UNet

    A single row a particle, in which cross-attention is done twice. Raises ValueError for other networks.
    """
    return NormalizedAttention(network, scale, tau, alpha)


def pag(network: nn.Module, weight: float, scale: float = 3.0, layers: str = "mid") -> Guide:
    """Perturbed-attention guidance (arXiv 2403.17377): u + w (c - u) + s (c - p), p with identity self-attention.

    network  the pipeline's own: pipe.unet or pipe.transformer
    layers   a regular expression for the names of the self-attention modules to perturb

    Three rows a particle; two with weight 1, which needs no unconditional branch. Raises ValueError if no name matches.
    """
    return Guide(Against(weight, scale), weak=PerturbedAttention(network, layers))


def seg(network: nn.Module, weight: float, scale: float = 3.0, sigma: float = math.inf, layers: str = "mid") -> Guide:
    """Smoothed-energy guidance (arXiv 2408.00760): as `pag`, with the queries blurred by `sigma` pixels (inf: mean)."""
    if sigma <= 0:
        raise ValueError(f"seg(sigma={sigma}): expected a blur of sigma > 0 pixels; math.inf is their mean.")
    return Guide(Against(weight, scale), weak=PerturbedAttention(network, layers, sigma))


def slg(
    network: nn.Module, weight: float, layers: str, scale: float = 2.8, start: float = 0.01, stop: float = 0.2
) -> Guide:
    """Skip-layer guidance, as Stable Diffusion 3.5 has it: u + w (c - u) + s (c - p), p without some of the blocks.

    network      the pipeline's own: pipe.transformer or pipe.unet
    layers       a regular expression for the names of the blocks to leave out: r"^transformer_blocks\\.[789]$" is what
                 the makers of SD 3.5 medium advise
    start, stop  the part of the run, in [0, 1], in which p is asked for, at one row more a particle

    Raises ValueError if no name matches.
    """
    return Guide(Against(weight, scale, start, stop), weak=SkippedLayers(network, layers))


def sld(
    weight: float,
    concept: Cond,
    scale: float = 1000.0,
    threshold: float = 0.01,
    warmup: float = 0.2,
    momentum: float = 0.3,
    decay: float = 0.4,
    space: str = "epsilon",
) -> Guide:
    """Safe latent diffusion (arXiv 2211.05105): u + w (c - u - g), with g away from a concept where c comes near it.

    g = mu (s - u) with mu = min(1, scale |c - s|) where c - s < threshold, else 0, plus `momentum` times its running
    mean; applied from the fraction `warmup` of the run on. Defaults are the paper's medium setting, for 50 steps.

    concept  `denoiser_of(pipe, "violence, blood").cond`: one row more a particle
    With a momentum it goes with no search between steps. scale = 0 is `cfg`.
    """
    return Guide(Away(weight, warmup, momentum, decay, scale, threshold), space, concepts=(concept,))


def sega(
    weight: float,
    concepts: Sequence[Cond],
    scales: Sequence[float],
    quantile: float = 0.9,
    warmup: float = 0.2,
    momentum: float = 0.1,
    decay: float = 0.4,
    space: str = "epsilon",
) -> Guide:
    """Semantic guidance (arXiv 2301.12247): u + w (c - u) + sum of scale (e - u) where |e - u| is in its top quantile.

    concepts  `denoiser_of(pipe, text).cond` of each edit: one row more a particle each
    scales    one each, the paper's about 5; a negative one takes the concept away
    With a momentum it goes with no search between steps. Raises ValueError unless there are as many scales as concepts.
    """
    if len(scales) != len(concepts):
        raise ValueError(
            f"sega: {len(concepts)} concepts and {len(scales)} scales; expected one scale for each concept."
        )
    rule = Edit(weight, warmup, momentum, decay, tuple(scales), quantile)
    return Guide(rule, space, concepts=tuple(concepts))


def late_negative(weight: float, concept: Cond | None = None, erase: float | None = None, start: float = 0.3) -> Guide:
    """Late negative guidance: u + w (c - u), and from the fraction `start` of the run on - e (concept - u) too.

    The training-free reading of ANT (arXiv 2504.12782), which trains a network to turn away so late: early steps, which
    lay out the picture, stay as they are. Without a concept the prompt's own direction is reversed: u - e (c - u).

    concept  `denoiser_of(pipe, text).cond`: one row more a particle from `start` on
    erase    e, default w
    """
    erase = weight if erase is None else erase
    if concept is None:
        return Guide(LateReverse(weight, erase, start))
    return Guide(LateNegative(weight, erase, start), concepts=(concept,))
