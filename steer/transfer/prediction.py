"""The arbitrary stylization network (arXiv 1705.06830): one picture predicts the parameters of every normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer.transfer.layers import InstanceNorm, MaskedConv, fresh
from steer.transfer.net import Masks
from steer.transfer.statistics import moments

Pairs = Sequence[tuple[Tensor, Tensor] | None]


class Predictor(nn.Module):
    """Style pictures (b, 3, h, w) in [0, 1] -> codes (b, 100); `pairs` makes (gamma, beta) of a code for each layer.

    Four convolutions of stride 2 in the place of Inception, the mean over space, and linear maps alone after it, so
    that straight lines between codes are straight lines between the parameters.
    """

    def __init__(self, channels: Sequence[int], bottleneck: int = 100, widths: Sequence[int] = (32, 64, 96, 128)):
        super().__init__()
        self.convs = nn.ModuleList(MaskedConv(a, b, stride=2) for a, b in zip((3, *widths), widths))
        self.code = nn.Linear(widths[-1], bottleneck)
        heads = [nn.Linear(bottleneck, 2 * c) for c in channels]
        for head, c in zip(heads, channels):
            nn.init.ones_(head.bias.data[:c])
            nn.init.zeros_(head.bias.data[c:])
        self.heads = nn.ModuleList(heads)

    def forward(self, style: Tensor, mask: Tensor | None = None) -> Tensor:
        x, seen = style * 2 - 1, mask
        for conv in self.convs:
            x, seen = conv(x, seen)
            x = F.silu(x)
        return self.code(moments(x, mask=fresh(mask, x)).mean[..., 0, 0])

    def pairs(self, code: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(gamma, beta), (b, c) each, of every layer."""
        return [tuple(head(code).float().chunk(2, dim=1)) for head in self.heads]


class Layer(nn.Module):
    """[upsample,] convolution, instance normalization; `styles` as in `InstanceNorm`."""

    def __init__(self, inside: int, outside: int, kernel: int = 3, stride: int = 1, up: bool = False, styles: int = 0):
        super().__init__()
        self.conv, self.norm, self.up = MaskedConv(inside, outside, kernel, stride), InstanceNorm(outside, styles), up

    def forward(self, x: Tensor, pair: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0) if self.up else x
        x, _ = self.conv(x, fresh(mask, x))
        return self.norm(x, pair, fresh(mask, x))


class Transfer(nn.Module):
    """Content (b, 3, h, w) in [0, 1] -> pictures in [0, 1]: two contractions, residual blocks, two expansions.

    The contracting layers have a plain instance norm; those after them, `conditional`, take a style's pairs. `styles`
    is the number that these hold themselves, 0 where a `Predictor` gives them.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 64), blocks: int = 5, styles: int = 0):
        super().__init__()
        a, b, c = widths
        self.contract = nn.ModuleList(
            [Layer(3, a, 9, styles=1), Layer(a, b, stride=2, styles=1), Layer(b, c, stride=2, styles=1)]
        )
        self.residual = nn.ModuleList(Layer(c, c, styles=styles) for _ in range(2 * blocks))
        self.expand = nn.ModuleList([Layer(c, b, up=True, styles=styles), Layer(b, a, up=True, styles=styles)])
        self.last = Layer(a, 3, 9, styles=styles)

    @property
    def conditional(self) -> list[int]:
        """Channels of the layers that take a style's pairs, in order."""
        layers = (*self.residual, *self.expand, self.last)
        return [layer.conv.out_channels for layer in layers if isinstance(layer, Layer)]

    def forward(
        self,
        content: Tensor,
        pairs: Pairs | None = None,
        mask: Tensor | None = None,
        beside: Pairs | None = None,
        blend: Tensor | None = None,
    ) -> Tensor:
        """pairs: (gamma, beta) of each conditional layer, None for a network that holds its one style itself.

        The rest is as in `steer.transfer.net.Decoder`; beside are the pairs of the content's own style.
        """
        pairs = [None] * len(self.conditional) if pairs is None else pairs
        x = self._inner(content, pairs, mask)
        other = None if beside is None or blend is None else self._inner(content, beside, None)
        for k, layer in enumerate(self.expand, len(self.residual)):
            x = layer(x, pairs[k], mask).relu()
            if other is not None:
                other = layer(other, beside[k], None).relu()
                x = other.lerp(x, fresh(blend, x).to(x.dtype))
        return self.last(x, pairs[-1], mask).sigmoid()

    def _inner(self, x: Tensor, pairs: Pairs, mask: Tensor | None) -> Tensor:
        x = x * 2 - 1
        for layer in self.contract:
            x = layer(x, None, mask).relu()
        for k in range(0, len(self.residual), 2):
            inner = self.residual[k](x, pairs[k], mask).relu()
            x = x + self.residual[k + 1](inner, pairs[k + 1], mask)
        return x


class Arbitrary(nn.Module):
    """Style transfer by predicted normalisation; a style is a point in 100 dimensions (`predictor`).

    code = (1 - alpha) P(c) + alpha sum_k w_k P(s_k): alpha = 0 gives the content its own style.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 64), blocks: int = 5):
        super().__init__()
        self.transfer = Transfer(widths, blocks)
        self.predictor = Predictor(self.transfer.conditional)

    def forward(
        self,
        content: Tensor,
        styles: Sequence[Tensor],
        weights: Sequence[float],
        alpha: float = 1.0,
        mask: Tensor | None = None,
        style_masks: Masks | None = None,
        blend: Tensor | None = None,
    ) -> Tensor:
        """As `steer.transfer.net.AdaIN`."""
        own = self.predictor(content, mask)
        code = torch.zeros_like(own)
        for style, weight, inside in zip(styles, weights, style_masks or [None] * len(styles), strict=True):
            code = code + weight * self.predictor(style, inside)
        pairs = self.predictor.pairs(own.lerp(code, alpha))
        beside = None if blend is None else self.predictor.pairs(self.predictor(content))
        return self.transfer(content, pairs, mask, beside, blend)
