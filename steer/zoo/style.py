"""The network behind emoji-style."""

from __future__ import annotations

from torch import Tensor, nn

from steer.zoo.data import STYLES


class StyleNet(nn.Module):
    """Pictures (b, 3, h, w) in [0, 1] -> logits (b, 4) over `STYLES`; h and w at least 16.

    `features` are the activations after each of four stride-2 stages, (b, c, h / 2^k, w / 2^k).
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128)):
        super().__init__()
        channels = (3, *widths)
        self.stages = nn.ModuleList(self._stage(a, b) for a, b in zip(channels, widths, strict=False))
        self.head = nn.Linear(widths[-1], len(STYLES))

    @staticmethod
    def _stage(inside: int, outside: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride=2, padding=1),
            nn.GroupNorm(8, outside),
            nn.SiLU(),
            nn.Conv2d(outside, outside, 3, padding=1),
            nn.GroupNorm(8, outside),
            nn.SiLU(),
        )

    def features(self, images: Tensor) -> list[Tensor]:
        x, found = images * 2 - 1, []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)[-1].mean((2, 3)))
