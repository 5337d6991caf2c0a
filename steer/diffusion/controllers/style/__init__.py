"""Style by features of reference pictures: every function returns a controller.

>>> content, style = (steer.invert(pipe, picture, num_inference_steps=50) for picture in pictures)
>>> injected = steer.style.style_id(pipe.unet, content, style)
>>> steer.Steered(pipe, injected)("", n=1, num_inference_steps=50, guidance_scale=1)

References are trajectories, of pictures inverted (`steer.invert`) or of runs recorded (`steer.record`), made with the
scheduler, number of steps and size of the run. They are evaluated beside the particles in the same call of the network,
once for all of them, so that no features are stored. `steer.during` limits a controller to a stretch of the run. List
guidance before these; several of them go in one chain if they write to different layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from steer.diffusion.control import Chain, chain
from steer.diffusion.controllers.style.core import Injected, decoder
from steer.diffusion.controllers.style.latents import LatentAdaIN
from steer.diffusion.controllers.style.rules import Rule, Shared, Swap, shares
from steer.diffusion.trajectory import Trajectory

__all__ = [
    "Injected",
    "LatentAdaIN",
    "Rule",
    "attention_adain",
    "coupled",
    "decoder",
    "latent_adain",
    "style_aligned",
    "style_id",
]

References = Trajectory | Sequence[Trajectory]


def style_id(
    network: nn.Module,
    content: Trajectory | None,
    style: References,
    gamma: float = 0.75,
    tau: float = 1.5,
    layers: str | None = None,
    strength: float = 1.0,
    mask: Tensor | None = None,
    weights: Sequence[float] | None = None,
    adain: bool = True,
) -> Chain:
    """StyleID (arXiv 2312.09008): attention that looks for the style's keys and values with the content's queries.

        q~ = gamma q_content + (1 - gamma) q,   out = softmax(tau q~ k_style^T / sqrt(d)) v_style

    at all steps but the noisiest, for the picture's tokens; the run starts from the content's latents, given the
    style's channel statistics. The paper runs the empty prompt without guidance.

    network   the pipeline's own: pipe.unet or pipe.transformer
    content   one picture's trajectory. None: no queries are blended, and the run starts from its own noise
    style     one trajectory or several, of K pictures in all
    gamma     in [0, 1]: how much of the content is kept; the paper's 0.75, or 0.3 for more style
    tau       > 0: sharpens the attention
    layers    a regular expression for the names of the attention modules; None: the decoder's, see `decoder`
    strength  out = own + strength (injected - own), and alpha of the start's statistics; 1 is the paper's. 0 is no
              control: the run starts from its own noise, as if this were not in the chain
    mask      (h, w) in [0, 1]: own attention outside of it, and the statistics are matched inside; an empty one is no
              control, as strength 0
    weights   of the styles' attentions and statistics, one a picture, divided by their sum; None: equal ones
    adain     whether the start is given the style's statistics

    A call of the network has K + 1 rows more (K if gamma = 0 or without a content). Raises ValueError for bad numbers,
    a content of several pictures, and a network without self- or joint attention.
    """
    styles = _several(style)
    if not (0 <= gamma <= 1 and tau > 0):
        raise ValueError(f"style_id(gamma={gamma}, tau={tau}): expected 0 <= gamma <= 1 and tau > 0.")
    gamma = 0.0 if content is None else gamma
    share = shares(weights, sum(one.x.shape[1] for one in styles))
    references = (*([content] if content is not None and gamma > 0 else []), *styles)
    rule = Swap(gamma, tau, share)
    injected = Injected(network, rule, references, layers, strength, mask, noisiest=False)
    begin = LatentAdaIN(styles, share, strength if adain else 0.0, content=content, mask=mask)
    return chain(injected) if content is None or injected.idle else chain(begin, injected)


def style_aligned(
    network: nn.Module,
    reference: References | None = None,
    layers: str = "",
    strength: float = 1.0,
    mask: Tensor | None = None,
) -> Injected:
    """StyleAligned (arXiv 2312.02133): attention shared with a reference, to whose statistics q and k are brought.

        q, k <- AdaIN to those of the reference,   out = softmax(q [k; k_ref]^T / sqrt(d)) [v; v_ref]

    reference  one trajectory or several, whose tokens then count as those of one picture. None: the first particle of
               the call, which stays as it is: give several prompts in one call, or n > 1
    layers     a regular expression for the names of the attention modules; "" is all of them, as in the paper
    strength   out = own + strength (shared - own)
    mask       (h, w) in [0, 1]: own attention outside of it

    Normalisation layers are not shared. One row a reference more. Raises ValueError as `style_id` does.
    """
    return Injected(network, Shared(), _several(reference), layers, strength, mask)


def coupled(
    network: nn.Module, reference: References | None = None, layers: str = "", strength: float = 1.0
) -> Injected:
    """Coupled attention (JeDi, arXiv 2407.06187): every picture of a set looks at the keys and values of all.

        out^n = softmax(q^n [k^1; ...; k^N]^T / sqrt(d)) [v^1; ...; v^N]

    reference  given pictures of the set, which see themselves alone, as each particle sees itself and them. None: the
               set is all particles of the call; a set of one is no control
    layers, strength  as in `style_aligned`

    The attention of the paper; its network was trained with it, others were not. Raises ValueError as `style_id` does.
    """
    rule = Shared(normalize=(), everyone=reference is None)
    return Injected(network, rule, _several(reference), layers, strength)


def attention_adain(
    network: nn.Module,
    reference: References,
    alpha: float = 1.0,
    parts: Sequence[str] = ("query", "key"),
    layers: str = "",
    mask: Tensor | None = None,
) -> Injected:
    """AdaIN (arXiv 1703.06868) of attention features: parts get the reference's mean and deviation over tokens.

    parts  of "query", "key" and "value", head by head and channel by channel
    alpha  out = own + alpha (aligned - own), in [0, 1]
    layers, mask  as in `style_aligned`

    Raises ValueError for other parts, and as `style_id` does.
    """
    if not parts or set(parts) - {"query", "key", "value"}:
        raise ValueError(f'attention_adain(parts={tuple(parts)}): expected some of "query", "key" and "value".')
    return Injected(network, Shared(tuple(parts), read=False), _several(reference), layers, alpha, mask)


def latent_adain(
    reference: References,
    alpha: float = 1.0,
    noise: bool = True,
    clean: bool = True,
    content: Trajectory | None = None,
    mask: Tensor | None = None,
    weights: Sequence[float] | None = None,
) -> LatentAdaIN:
    """AdaIN (arXiv 1703.06868) of latents: sigma(y) (x - mu(x)) / sigma(x) + mu(y) per channel over space.

    alpha    in [0, 1]: how much of it; 0 changes nothing
    noise    of the particles as they start, towards the reference at that noise level
    clean    of x0 at every look and of the finished sample, towards the clean reference
    content  one picture's trajectory that every particle starts from
    mask     (h, w) in [0, 1]: where
    weights  of several references, one a picture, divided by their sum; None: equal ones

    No rows of the network. Raises ValueError for bad numbers and a content of several pictures.
    """
    references = _several(reference)
    share = shares(weights, sum(one.x.shape[1] for one in references))
    return LatentAdaIN(references, share, alpha, noise, clean, content, mask)


def _several(given: References | None) -> tuple[Trajectory, ...]:
    """Trajectories from one, several or none. Raises ValueError for an empty list and for anything else."""
    if given is None or isinstance(given, Trajectory):
        return () if given is None else (given,)
    if not isinstance(given, Sequence) or not given or not all(isinstance(one, Trajectory) for one in given):
        raise ValueError(
            f"references of type {type(given).__name__}: expected one Trajectory or a list of them, from "
            "steer.invert(pipe, picture) or steer.record(pipe, prompt)."
        )
    return tuple(given)
