"""Networks made worse: perturbed self-attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from steer.diffusion.control import Controller, Denoiser
from steer.diffusion.controllers.guidance.layers import chosen
from steer.diffusion.state import Level


@dataclass(frozen=True)
class PerturbedAttention(Controller):
    """The denoiser with some self-attention of its network perturbed, in all rows of its calls.

    network  the module that the denoiser calls
    layers   regular expression that is searched for in the names of its self-attention modules
    sigma    queries are blurred over the pixels by a Gaussian of so many pixels (inf: their mean); None: the attention
             map is the identity

    Needs attention by torch's scaled_dot_product_attention, which the default processors of diffusers call. The network
    is as before after each evaluation. Raises ValueError if no self-attention module has such a name.
    """

    network: nn.Module = field(repr=False)
    layers: str = "mid"
    sigma: float | None = None

    def __post_init__(self):
        self._modules()

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def perturbed(x: Tensor, level: Level, cond: Any) -> Tensor:
            with ExitStack() as stack:
                for module in self._modules():
                    stack.enter_context(_under(self._mode(), module))
                return denoiser(x, level, cond)

        return perturbed

    def _mode(self) -> TorchFunctionMode:
        from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode

        return AttentionScoreSkipFunctionMode() if self.sigma is None else _BlurredQueries(self.sigma)

    def _modules(self) -> list[nn.Module]:
        return chosen(self.network, self.layers, _is_self_attention, "self-attention module")


def _is_self_attention(module: nn.Module) -> bool:
    return hasattr(module, "to_q") and not getattr(module, "is_cross_attention", True)


@contextmanager
def _under(mode: TorchFunctionMode, module: nn.Module) -> Iterator[None]:
    """While active, the forward of one module runs under a function mode."""

    def enter(*_: Any) -> None:
        mode.__enter__()

    def leave(*_: Any) -> None:
        mode.__exit__(None, None, None)

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _BlurredQueries(TorchFunctionMode):
    """Smoothed energy guidance (arXiv 2408.00760): queries (b, heads, h w, d) of square maps, blurred over h and w."""

    def __init__(self, sigma: float):
        super().__init__()
        self.sigma = sigma

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            blurred = self._blurred(query)
            args, kwargs = ((blurred, *args[1:]), kwargs) if args else (args, {**kwargs, "query": blurred})
        return func(*args, **kwargs)

    def _blurred(self, query: Tensor) -> Tensor:
        from torchvision.transforms.v2.functional import gaussian_blur

        if math.isinf(self.sigma):
            return query.mean(-2, keepdim=True).expand_as(query)
        side = math.isqrt(query.shape[-2])
        if side**2 != query.shape[-2]:
            raise ValueError(f"{query.shape[-2]} queries are no square picture; use sigma = inf, which needs none.")
        kernel = min(2 * math.ceil(3 * self.sigma) + 1, 2 * side - 1)
        maps = query.transpose(-1, -2).unflatten(-1, (side, side))
        return gaussian_blur(maps, [kernel, kernel], [self.sigma, self.sigma]).flatten(-2).transpose(-1, -2)
