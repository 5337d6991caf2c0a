"""Editing of pictures that were recorded or inverted: every function returns a controller, or what one is given.

>>> options = {"num_inference_steps": 50, "generator": g}
>>> source = steer.record(pipe, "a red apple", **options)     # or steer.invert(pipe, picture, "a red apple")
>>> prompts = steer.edit.aligned(pipe.tokenizer, "a red apple", "a green apple")
>>> edit = steer.edit.prompt_to_prompt(pipe.unet, source, prompts)
>>> steer.Steered(pipe, edit)("a green apple", n=1, num_inference_steps=50)

A source is evaluated in the particles' own network calls, one row more a branch and call, whatever the number of
particles, where the controller is at work; nowhere else. All particles start from its noise, so that a search among
them needs a solver that draws noise. Fractions are of the run's steps. Concepts are avoided by
`steer.guidance.late_negative` and `steer.guidance.sld`, which go before these in a list.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from steer.diffusion.controllers.edit.align import Alignment, aligned
from steer.diffusion.controllers.edit.blended import Inpaint
from steer.diffusion.controllers.edit.features import MasaCtrl, PlugAndPlay
from steer.diffusion.controllers.edit.fill import SideBySide, side_by_side, task_embeds
from steer.diffusion.controllers.edit.patches import patch_swap
from steer.diffusion.controllers.edit.prompt import PromptToPrompt
from steer.diffusion.controllers.edit.words import Words
from steer.diffusion.trajectory import Trajectory

__all__ = [
    "Alignment",
    "SideBySide",
    "aligned",
    "inpaint",
    "masactrl",
    "patch_swap",
    "plug_and_play",
    "prompt_to_prompt",
    "side_by_side",
    "task_embeds",
]


def prompt_to_prompt(
    network: nn.Module,
    source: Trajectory,
    alignment: Alignment | None = None,
    cross: float = 0.8,
    self_: float = 0.4,
    resolution: int = 32,
    weights: Mapping[int, float] | None = None,
    blend: Words | None = None,
    blend_from: float = 0.2,
    threshold: float = 0.3,
    same_noise: bool = True,
) -> PromptToPrompt:
    """Prompt-to-Prompt (arXiv 2208.01626): another prompt, with the attention maps of the source's.

    network     the pipeline's own: pipe.unet or pipe.transformer
    alignment   whose map each token has: `aligned(...)`, of swapped words or refined prompts; None: that of its own
                place in the source's prompt, as for a prompt that is only weighed anew
    cross       up to here the maps of the words are the source's: in joint attention the text columns of the picture's
                queries, whose other columns are scaled so that they sum to one
    self_       up to here the picture's queries and keys are the source's, which makes its maps the source's
    resolution  of the largest site (resolution^2 tokens) at which they are
    weights     {position among the new prompt's tokens: factor}, "reweight"
    blend       LocalBlend: (positions of words in the source's prompt, in the new one), such as `alignment.changed`:
                outside of where they are looked at by more than `threshold` of the most, x0 is the source's, from
                blend_from on. Packed latents are taken for square
    same_noise  False: the particles start from their own noise

    Of guidance's branches the conditional one is edited. cross = self_ = 0 without blend is no control. Raises
    ValueError for a network without cross- or joint attention, an alignment of another number of tokens than it reads,
    a source of several pictures, and in a run of other latents or levels.
    """
    settings = (alignment, cross, self_, resolution, weights or {}, blend, blend_from, threshold)
    return PromptToPrompt(network, source, *settings, same_noise=same_noise)


def masactrl(
    network: nn.Module,
    source: Trajectory,
    from_step: float = 0.08,
    layers: str | None = None,
    words: Words | None = None,
    threshold: float = 0.1,
    same_noise: bool = True,
) -> MasaCtrl:
    """MasaCtrl (arXiv 2304.08465): the picture's queries read the source's keys and values: new pose, same looks.

    network    the pipeline's own: pipe.unet or pipe.transformer
    from_step  from here on; the paper: step 4 of 50. 1 is no control
    layers     a regular expression for the names of sites of self- or joint attention; None: those of the last two
               blocks of a UNet's decoder that have any, which is the paper's choice, or of a transformer's second half
    words      (positions of the object's words in the source's prompt, in the new one): what is looked at by more than
               `threshold` of the most, in the layers before, is the object, and reads the source's object alone; the
               rest reads the rest

    All branches are edited; text keeps its own keys and values. Raises ValueError for no such name, a source of several
    pictures, and in a run of other latents or levels.
    """
    return MasaCtrl(network, source, from_step, layers, words, threshold, same_noise=same_noise)


def plug_and_play(
    network: nn.Module,
    source: Trajectory,
    attention: float = 0.5,
    features: float = 0.8,
    layers: str | None = None,
    blocks: str | None = None,
    same_noise: bool = True,
) -> PlugAndPlay:
    """Plug-and-play (arXiv 2211.12572): the source's self-attention maps and residual features, another prompt.

    network    the pipeline's own: pipe.unet or pipe.transformer
    attention  up to here queries and keys of the picture are the source's, at `layers`, as in `masactrl`
    features   up to here what a residual block adds is the source's
    blocks     a regular expression for their names; None: r"up_blocks\\.1\\.resnets\\.1$" of a UNet, the paper's, and
               none of a transformer, which has no such blocks

    All branches are edited. attention = features = 0 is no control. Raises ValueError for no such name, a source of
    several pictures, and in a run of other latents or levels.
    """
    return PlugAndPlay(network, source, attention, features, layers, blocks, same_noise=same_noise)


def inpaint(mask: Tensor, source: Trajectory | Tensor, fill: Tensor | None = None, until: float = 0.4) -> Inpaint:
    """Blended latent diffusion (arXiv 2206.02779): the mask is repainted, all else is the source, bit for bit.

        x <- m x + (1 - m) x_source,    x0 <- m x0 + (1 - m) x0_source

    mask    (h, w) of the picture or its latents, 1 where to repaint; a latent with a masked pixel is repainted
    source  one picture's trajectory, met at each of its levels; or its clean latents (1, ...), to which the run's own
            noise is put: what moves by x0 = x0_source is that
    fill    (1, ...) clean latents for the mask, such as `patch_swap` makes: up to the fraction `until` of the run they
            are the estimate, without asking the network: the fill, renoised, is where it starts

    For any pipeline that is not made for inpainting, in any family; latents may be packed as FLUX packs them. It is no
    row of the network dearer. A full mask is no control. In a list it stands after guidance. Raises ValueError for a
    mask that is none or does not fit, several pictures, and in a run of other latents or levels.
    """
    return Inpaint(mask, source, fill, until)
