"""ConvNeXt-T (Liu et al., arXiv:2201.03545), as its authors describe it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from examples.case import Case, seeded


class Block(nn.Module):
    """Depthwise 7x7, then a per-pixel MLP scaled per channel, added to the input.

    `[N, channels, H, W] -> [N, channels, H, W]`. `drop` is the chance that training skips the
    branch for a whole sample (stochastic depth).
    """

    def __init__(self, channels: int, layer_scale: float, drop: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.activation = nn.GELU()
        self.reduce = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), layer_scale))
        self.skip = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.reduce(self.activation(self.expand(self.norm(y))))
        branch: Tensor = self.skip((self.scale * y).permute(0, 3, 1, 2))
        return x + branch


class StochasticDepth(nn.Module):
    """In training, zero whole samples of `[N, ...]` with chance `drop`, and scale up the rest."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop == 0.0:
            return x
        keep = 1.0 - self.drop
        kept = torch.bernoulli(x.new_full((x.shape[0],) + (1,) * (x.dim() - 1), keep))
        return x * (kept / keep)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of `[N, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """`[N, 3, H, W] -> logits [N, classes]`.

    `layer_scale` is the initial value of each block's channel scale; `stochastic_depth` is the
    skipping chance of the last block, which grows linearly from none at the first.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        widths: Sequence[int] = (96, 192, 384, 768),
        classes: int = 1000,
        layer_scale: float = 1e-6,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), ChannelNorm(widths[0], eps=1e-6))
        self.downsample = nn.ModuleList([stem, *(halve(a, b) for a, b in pairwise(widths))])
        last = max(sum(depths) - 1, 1)
        drops = iter(stochastic_depth * block / last for block in range(sum(depths)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, layer_scale, next(drops)) for _ in range(depth)))
            for depth, width in zip(depths, widths, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], classes)
        self.apply(initialize)

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample, self.stages, strict=True):
            x = stage(downsample(x))
        logits: Tensor = self.head(self.norm(x.mean((-2, -1))))
        return logits


def halve(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(ChannelNorm(channels, eps=1e-6), nn.Conv2d(channels, out, 2, stride=2))


def initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def convnext_tiny(
    batch: int = 1,
    size: int = 224,
    *,
    depths: Sequence[int] = (3, 3, 9, 3),
    widths: Sequence[int] = (96, 192, 384, 768),
    classes: int = 1000,
    layer_scale: float = 1e-6,
    stochastic_depth: float = 0.0,
) -> Case:
    with seeded(0):
        model = ConvNeXt(depths, widths, classes, layer_scale, stochastic_depth)
        return model.eval(), (torch.randn(batch, 3, size, size),)
