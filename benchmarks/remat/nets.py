"""Convolutional and hybrid image models at the sizes that the literature benchmarks, after their
papers: what matters here is which tensors there are, so initialization is torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and, unless told otherwise, ReLU."""
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), *([nn.ReLU()] if act else []))


def classifier(channels: int, classes: int = 1000) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


# --- VGG-11, ResNet-18, DenseNet, U-Net ---------------------------------------------------------


def vgg11() -> nn.Module:
    """Simonyan and Zisserman, arXiv:1409.1556, configuration A, without dropout."""
    layers, channels = list[nn.Module](), 3
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    head = (nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(4096, 1000))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(channels, out, 3, stride)
        self.second = conv_bn(out, out, 3, act=False)
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else conv_bn(channels, out, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet18() -> nn.Module:
    """He et al., arXiv:1512.03385."""
    layers: list[nn.Module] = [conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            layers.append(BasicBlock(channels, width, 2 if stage and not block else 1))
            channels = width
    return nn.Sequential(*layers, classifier(512))


class DenseLayer(nn.Module):
    """`[N, channels, H, W]` to the same with `growth` more channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        )
        self.grow = nn.Sequential(
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.grow(self.reduce(x))], 1)


def densenet(depths: Sequence[int] = (6, 12, 24, 16), growth: int = 32) -> nn.Module:
    """Huang et al., arXiv:1608.06993 (121 layers)."""
    layers: list[nn.Module] = [conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        if stage:
            half = nn.Conv2d(channels, channels // 2, 1, bias=False)
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), half, nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth):
            layers.append(DenseLayer(channels, growth))
            channels += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), classifier(channels))


class UNet(nn.Module):
    """Ronneberger et al., arXiv:1505.04597, with padding and batch norm; `[N, 3, H, W]` to
    `[N, H, W, classes]`."""

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 512, 1024), classes: int = 21):
        super().__init__()
        pairs = list(pairwise((3, *widths)))
        self.down = nn.ModuleList(self.twice(a, b) for a, b in pairs)
        up = list(pairwise(reversed(widths)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in up)
        self.merge = nn.ModuleList(self.twice(2 * b, b) for _, b in up)
        self.head = nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def twice(channels: int, out: int) -> nn.Sequential:
        return nn.Sequential(conv_bn(channels, out, 3), conv_bn(out, out, 3))

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        logits: Tensor = self.head(x).permute(0, 2, 3, 1)
        return logits


# --- MobileNetV3 and EfficientNet ---------------------------------------------------------------


class Excite(nn.Module):
    """Squeeze and excitation: channels scaled by what their means say."""

    def __init__(self, channels: int, hidden: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        reduce, expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), reduce, act, expand, gate)

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = x * self.scale(x)
        return scaled


class Inverted(nn.Module):
    """Expand, depthwise, excite, project; added to the input where the shapes allow."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        out: int,
        kernel: int,
        stride: int,
        act: nn.Module,
        excite: nn.Module,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hidden != channels:
            layers += [conv_bn(channels, hidden, 1, act=False), act]
        layers += [conv_bn(hidden, hidden, kernel, stride, hidden, act=False), act, excite]
        self.layers = nn.Sequential(*layers, conv_bn(hidden, out, 1, act=False))
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


# Kernel, hidden channels, out, whether it excites, whether hard-swish, stride.
_MOBILE = (
    *((3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2)),
    *((5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1)),
    *((3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1)),
    *((3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1)),
    (5, 960, 160, 1, 1, 1),
)


def mobilenetv3_large() -> nn.Module:
    """Howard et al., arXiv:1905.02244, table 1."""
    layers: list[nn.Module] = [conv_bn(3, 16, 3, 2, act=False), nn.Hardswish()]
    channels = 16
    for kernel, hidden, out, excites, swish, stride in _MOBILE:
        act = nn.Hardswish() if swish else nn.ReLU()
        excite = Excite(hidden, hidden // 4, nn.ReLU(), nn.Hardsigmoid())
        layer = excite if excites else nn.Identity()
        layers.append(Inverted(channels, hidden, out, kernel, stride, act, layer))
        channels = out
    layers += [conv_bn(160, 960, 1, act=False), nn.Hardswish(), nn.AdaptiveAvgPool2d(1)]
    head = (nn.Flatten(), nn.Linear(960, 1280), nn.Hardswish(), nn.Linear(1280, 1000))
    return nn.Sequential(*layers, *head)


# Expansion, out, how many, stride of the first, kernel.
_EFFICIENT = (
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
    *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
)


def efficientnet_b0() -> nn.Module:
    """Tan and Le, arXiv:1905.11946, table 1."""
    layers: list[nn.Module] = [conv_bn(3, 32, 3, 2, act=False), nn.SiLU()]
    channels = 32
    for expansion, out, count, stride, kernel in _EFFICIENT:
        for block in range(count):
            hidden = expansion * channels
            excite = Excite(hidden, channels // 4, nn.SiLU(), nn.Sigmoid())
            first = 1 if block else stride
            layers.append(Inverted(channels, hidden, out, kernel, first, nn.SiLU(), excite))
            channels = out
    return nn.Sequential(*layers, conv_bn(320, 1280, 1, act=False), nn.SiLU(), classifier(1280))
