"""The encoder-decoder of AdaIN (arXiv 1703.06868), whole or inside a region (blended partial convolution)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer.transfer.layers import MaskedConv, fresh, max_pool
from steer.transfer.statistics import adain

WIDTHS = (32, 64, 128)
Masks = Sequence[Tensor | None]


class Encoder(nn.Module):
    """Pictures (b, 3, h, w) in [0, 1] -> the activations relu1_1, relu2_1, relu3_1 of a small VGG without norms.

    Stage k is (b, widths[k], h / 2^k, w / 2^k). With a mask it is a function of the region, and of a ring of one pixel.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS):
        super().__init__()
        first = nn.ModuleList([MaskedConv(3, widths[0])])
        rest = (nn.ModuleList([MaskedConv(a, a), MaskedConv(a, b)]) for a, b in zip(widths, widths[1:]))
        self.stages = nn.ModuleList([first, *rest])
        self.apply(_he)

    def forward(self, pictures: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        x, found = pictures * 2 - 1, []
        for convs in self.stages:
            for k, conv in enumerate(convs):
                x, mask = (x, mask) if k == 0 else max_pool(x, mask)
                x, mask = conv(x, mask)
                x = x.relu()
            found.append(x)
        return found

    @torch.no_grad()
    def normalise(self, pictures: Tensor) -> None:
        """Scale the channels so that each has mean square 1 on these pictures; what the net tells apart stays.

        ReLU networks are homogeneous: relu(w x / s) = relu(w x) / s for s > 0, and the next layer's weights take s
        back. So the losses weigh channels and stages alike, as by the means in arXiv 1508.06576; squares, since Grams
        are made of them, and never by less than a tenth of the others' mean: a dead channel would rule them all.
        """
        x, before = pictures * 2 - 1, pictures.new_ones(3)
        for k, conv in enumerate(module for module in self.modules() if isinstance(module, MaskedConv)):
            x = F.max_pool2d(x, 2) if k and k % 2 == 0 else x
            conv.weight *= before[:, None, None]
            rms = conv(x)[0].relu().square().mean((0, 2, 3)).sqrt()
            before = rms.clamp_min(rms.mean() / 10)
            conv.weight /= before[:, None, None, None]
            conv.bias /= before
            x = conv(x)[0].relu()


class Decoder(nn.Module):
    """relu3_1 -> pictures: the encoder mirrored, nearest upsampling, reflection padding, no normalisation."""

    def __init__(self, widths: Sequence[int] = WIDTHS):
        super().__init__()
        pairs = list(zip(widths, widths[1:]))[::-1]
        self.stages = nn.ModuleList(nn.ModuleList([MaskedConv(b, a), MaskedConv(a, a)]) for a, b in pairs)
        self.last = MaskedConv(widths[0], 3)
        self.apply(_he)

    def forward(
        self, code: Tensor, mask: Tensor | None = None, beside: Tensor | None = None, blend: Tensor | None = None
    ) -> Tensor:
        """(b, c, h, w) -> pictures (b, 3, 4 h, 4 w), not clamped.

        mask    the picture's region (b or 1, 1, 4 h, 4 w): every convolution sees it alone, resized afresh each time
        beside  the content's own code; with `blend`, a weight of the picture's size, features of every stage become
                blend f + (1 - blend) f_beside
        """
        x = code
        for stage in self.stages:
            for k, conv in enumerate(stage):
                x = _convolved(conv, x, mask, up=k == 1)
                if beside is not None and blend is not None:
                    beside = _convolved(conv, beside, None, up=k == 1)
                    x = beside.lerp(x, fresh(blend, x).to(x.dtype))
        return self.last(x, mask)[0]


class AdaIN(nn.Module):
    """Style transfer by the statistics of features: g((1 - alpha) f(c) + alpha sum_k w_k AdaIN(f(c), f(s_k)))."""

    def __init__(self, widths: Sequence[int] = WIDTHS):
        super().__init__()
        self.encoder, self.decoder = Encoder(widths), Decoder(widths)

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
        """Content (b, 3, h, w) in [0, 1], styles (b or 1, 3, h', w') each -> pictures, not clamped.

        mask   region of the content: convolutions and statistics see it alone. The statistics are of the places that
               the picture's own mask covers: the mask that convolutions hand on has grown by a pixel a layer, which at
               this size is half of a small region
        blend  weight of the picture's size for `Decoder`'s blending with features of the content; None: no blending
        """
        code = self.encoder(content, mask)[-1]
        area, target = fresh(mask, code), torch.zeros_like(code)
        for style, weight, inside in zip(styles, weights, style_masks or [None] * len(styles), strict=True):
            theirs = self.encoder(style, inside)[-1]
            target = target + weight * adain(code, theirs, alpha, area, fresh(inside, theirs))
        beside = None if blend is None else self.encoder(content)[-1]
        return self.decoder(target, mask, beside, blend)


def _he(module: nn.Module) -> None:
    """Initial weights that keep the size of activations through layers without norms."""
    if isinstance(module, MaskedConv):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def _convolved(conv: MaskedConv, x: Tensor, mask: Tensor | None, up: bool) -> Tensor:
    x = F.interpolate(x, scale_factor=2.0) if up else x
    return conv(x, fresh(mask, x))[0].relu()
