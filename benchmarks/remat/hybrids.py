"""Transformers on images, and nets of both kinds, after their papers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.remat.nets import Excite, conv_bn


class Attention(nn.Module):
    """Softmax attention of `[N, T, width]`, spelled in matrix products; with `places`, a learned
    bias for each pair of places and head."""

    def __init__(self, width: int, heads: int, places: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        shape = (1, heads, places, places)
        self.bias = nn.Parameter(torch.zeros(shape)) if places else None

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        split = self.qkv(x).reshape(n, t, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if self.bias is not None:
            scores = scores + self.bias
        mixed = scores.softmax(-1) @ v
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(n, t, width))
        return result


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Scale(nn.Module):
    """Of each channel, as LayerScale (arXiv:2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Branch(nn.Module):
    """What a norm, a layer and a scale add to their input."""

    def __init__(self, width: int, layer: nn.Module, *, scaled: bool) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(width), layer
        self.scale = Scale(width) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.scale(self.layer(self.norm(x)))
        return x + added


class Patches(nn.Module):
    """Images to a sequence of patches with a class token and learned places, and its classes."""

    def __init__(self, width: int, layers: nn.Module, size: int = 224, patch: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.layers, self.norm = layers, nn.LayerNorm(width)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        logits: Tensor = self.head(self.norm(self.layers(x))[:, 0])
        return logits


def vit(width: int, heads: int, *, scaled: bool) -> nn.Module:
    """ViT (arXiv:2010.11929) of 12 layers; `scaled` as in DeiT III (arXiv:2204.07118)."""
    layers: list[nn.Module] = []
    for _ in range(12):
        layers.append(Branch(width, Attention(width, heads), scaled=scaled))
        layers.append(Branch(width, mlp(width), scaled=scaled))
    return Patches(width, nn.Sequential(*layers))


# --- XCiT (arXiv:2106.09681) --------------------------------------------------------------------


class CrossCovariance(nn.Module):
    """Attention between channels: `[N, T, width]`, queries and keys normalized over T."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        split = self.qkv(x).reshape(n, t, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 4, 1).unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(-1)
        mixed = (weights @ v).permute(0, 3, 1, 2).reshape(n, t, width)
        result: Tensor = self.out(mixed)
        return result


class LocalPatches(nn.Module):
    """Two depthwise convolutions over the patches, which stand in a square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first = nn.Conv2d(width, width, 3, padding=1, groups=width)
        second = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.layers = nn.Sequential(first, nn.GELU(), nn.BatchNorm2d(width), second)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        side = int(t**0.5)
        square = x.permute(0, 2, 1).reshape(n, width, side, side)
        mixed: Tensor = self.layers(square).reshape(n, width, t).permute(0, 2, 1)
        return mixed


class ClassAttention(nn.Module):
    """The class token asks all others; `[N, T, width]` of which only the first changes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        return x.reshape(n, t, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x[:, :1])), self.split(self.k(x)), self.split(self.v(x))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        token = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(len(x), 1, -1))
        return torch.cat([token, x[:, 1:]], 1)


class WithToken(nn.Module):
    """A class token before what stands behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1)


class Stem(nn.Module):
    """Four halvings of an image, then its places as a sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (3, width // 8, width // 4, width // 2, width)
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [conv_bn(widths[i], widths[i + 1], 3, 2, act=False)]
            layers += [nn.GELU()] if i < 3 else []
        self.layers = nn.Sequential(*layers)
        self.places = nn.Conv2d(64, width, 1)
        self.register_buffer("waves", torch.zeros(1, 64, 14, 14))

    def forward(self, x: Tensor) -> Tensor:
        sequence: Tensor = (self.layers(x) + self.places(self.waves)).flatten(2).transpose(1, 2)
        return sequence


class First(nn.Module):
    """The first of a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def xcit_tiny_12(width: int = 192, heads: int = 4) -> nn.Module:
    layers: list[nn.Module] = [Stem(width)]
    for _ in range(12):
        for layer in (CrossCovariance(width, heads), LocalPatches(width), mlp(width)):
            layers.append(Branch(width, layer, scaled=True))
    layers.append(WithToken(width))
    for _ in range(2):
        for last in (ClassAttention(width, heads), mlp(width)):
            layers.append(Branch(width, last, scaled=True))
    return nn.Sequential(*layers, nn.LayerNorm(width), First(), nn.Linear(width, 1000))


# --- CoAtNet (arXiv:2106.04803) -----------------------------------------------------------------


class MobileBlock(nn.Module):
    """Batch norm, an inverted bottleneck with excitation, and a shortcut that pools."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * out
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            conv_bn(channels, hidden, 1, act=False),
            nn.SiLU(),
            conv_bn(hidden, hidden, 3, stride, hidden, act=False),
            nn.SiLU(),
            Excite(hidden, out // 4, nn.SiLU(), nn.Sigmoid()),
            nn.Conv2d(hidden, out, 1),
        )
        self.shortcut = nn.Identity() if stride == 1 else halved(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x) + self.shortcut(x)
        return y


def halved(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, out, 1))


class Halve(nn.Module):
    """Places as a square, half as many a side, of more channels, as a sequence again."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.layers = halved(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            side = int(x.shape[1] ** 0.5)
            x = x.transpose(1, 2).reshape(len(x), -1, side, side)
        sequence: Tensor = self.layers(x).flatten(2).transpose(1, 2)
        return sequence


class Mean(nn.Module):
    """Over a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def coatnet_2() -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 128, 3, 2), nn.Conv2d(128, 128, 3, padding=1)]
    channels = 128
    for width, depth in ((128, 2), (256, 6)):
        for block in range(depth):
            layers.append(MobileBlock(channels, width, 1 if block else 2))
            channels = width
    for width, depth, side in ((512, 14, 14), (1024, 2, 7)):
        layers.append(Halve(channels, width))
        for _ in range(depth):
            attention = Attention(width, width // 32, side * side)
            layers.append(Branch(width, attention, scaled=False))
            layers.append(Branch(width, mlp(width), scaled=False))
        channels = width
    return nn.Sequential(*layers, nn.LayerNorm(1024), Mean(), nn.Linear(1024, 1000))
