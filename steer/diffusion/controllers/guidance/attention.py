"""Networks made worse: perturbed self-attention."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from steer.diffusion.attention import Ask, Attend, Site, attending, grid, sites
from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.state import Level


@dataclass(frozen=True)
class PerturbedAttention(Controller):
    """The denoiser with some self-attention of its network perturbed, in all rows of its calls.

    network  the module that the denoiser calls
    layers   regular expression that is searched for in the names of its sites of self- or joint attention
    sigma    queries are blurred over the pixels by a Gaussian of so many pixels (inf: their mean); None: the attention
             map is the identity

    The network is as before after each evaluation. Raises ValueError if no site has such a name.
    """

    network: nn.Module = field(repr=False)
    layers: str = "mid"
    sigma: float | None = None

    def __post_init__(self):
        self._sites()

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        edit, written = (_identity, "output") if self.sigma is None else (self._blurred, "query")

        def perturbed(x: Tensor, level: Level, cond: Any) -> Tensor:
            with attending(self.network, self._sites(), edit, (written,)):
                return denoiser(x, level, cond)

        return perturbed

    def _sites(self) -> list[Site]:
        return sites(self.network, ("self", "joint"), self.layers)

    def _blurred(self, ask: Ask, attend: Attend) -> Tensor:
        """Smoothed energy guidance (arXiv 2408.00760): the picture's queries blurred over height and width."""
        query = ask.query.clone()
        query[..., ask.picture, :] = _blur(query[..., ask.picture, :], self.sigma or 0.0)
        return attend(ask.change(query=query))


def _identity(ask: Ask, attend: Attend) -> Tensor:
    """Perturbed-attention guidance (arXiv 2403.17377): every token attends to itself alone."""
    return ask.value


def _blur(query: Tensor, sigma: float) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur

    if math.isinf(sigma):
        return query.mean(-2, keepdim=True).expand_as(query)
    height, width = grid(query.shape[-2])
    kernel = min(2 * math.ceil(3 * sigma) + 1, 2 * min(height, width) - 1)
    maps = rearrange(query, "b heads (h w) d -> b heads d h w", h=height, w=width)
    return rearrange(gaussian_blur(maps, [kernel, kernel], [sigma, sigma]), "b heads d h w -> b heads (h w) d")
