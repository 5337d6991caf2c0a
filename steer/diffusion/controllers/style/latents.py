"""Channel statistics of latents, taken from references."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from steer.diffusion.control import Controller
from steer.diffusion.controllers.style.core import check_mask, empty, over_tokens
from steer.diffusion.state import State
from steer.diffusion.trajectory import Trajectory
from steer.transfer.statistics import adain


@dataclass(frozen=True)
class LatentAdaIN(Controller):
    """Latents with the channel means and deviations of references: sum of w_k AdaIN(z, z_k), alpha of it.

    references  trajectories of K pictures in all
    weights     one a picture, of sum 1
    alpha       in [0, 1]; 0 changes no statistics
    noise       at the start of the run
    clean       of x0 at every look, and of the finished sample
    content     whose latents every particle starts from, in place of its own noise
    mask        (h, w) in [0, 1] over the picture: where, and what z's own statistics are taken over

    Statistics run over space, in latents that come as tokens over these. Raises ValueError for bad numbers, for a
    content of more than one picture, and for n particles of a content under a solver that draws no noise.
    """

    references: tuple[Trajectory, ...]
    weights: tuple[float, ...]
    alpha: float = 1.0
    noise: bool = True
    clean: bool = False
    content: Trajectory | None = None
    mask: Tensor | None = field(default=None, repr=False)

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha = {self.alpha}: expected 0 (nothing changes) <= alpha <= 1.")
        if self.content is not None and self.content.x.shape[1] != 1:
            raise ValueError(f"a content of {self.content.x.shape[1]} pictures: expected a trajectory of one.")
        check_mask(self.mask)

    def start(self, state: State) -> State:
        if self.content is not None:
            x = self.content.at(state.level).to(state.x).expand_as(state.x).clone()
            state = replace(state, x=x, label=state.label // state.n * state.n)
        if not self.noise:
            return state
        return replace(state, x=self._matched(state.x, [one.at(state.level) for one in self.references]))

    def look(self, state: State) -> State:
        if self.content is not None and state.n > 1 and state.run.eta == 0:
            raise ValueError(
                f"{state.n} particles start from one content under a solver that draws no noise, so they stay equal; "
                "use eta > 0, or n = 1."
            )
        if not self.clean:
            return state
        return replace(state, x0=self._matched(state.x0, [one.latents for one in self.references]))

    def _matched(self, x: Tensor, targets: list[Tensor]) -> Tensor:
        if self.alpha == 0 or empty(self.mask):
            return x
        space, mask = ((-2, -1) if x.ndim == 4 else (-2,)), None
        if self.mask is not None and x.ndim == 4:
            mask = interpolate(self.mask[None, None].float(), x.shape[-2:], mode="area").to(x.device)
        elif self.mask is not None:
            mask = over_tokens(self.mask, x.shape[-2])[None].to(x.device)
        every = [one[None].to(x) for part in targets for one in part]
        found = [adain(x, one, self.alpha, mask, dim=space) for one in every]
        if len(found) == 1:
            return found[0]
        return torch.stack([w * one for w, one in zip(self.weights, found, strict=True)]).sum(0)
