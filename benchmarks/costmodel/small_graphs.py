"""Small pieces of programs whose ways to fuse can all be built and timed: the oracle set.

None is from the families that the model is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from rewright.calibrate.capture import inference_graph
from rewright.ir import Graph

Piece = Callable[..., Tensor | tuple[Tensor, ...]]


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, piece: Piece) -> None:
        super().__init__()
        self.piece = piece

    def forward(self, *args: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.piece(*args)


def mean_gate(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean(-1, keepdim=True) * w + b)


def added_norm(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    total = x + y
    return total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-6) * w


def soft_attention(scores: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    shown = torch.where(mask > 0, scores * 0.125 + bias, torch.full_like(scores, -1e4))
    return torch.softmax(shown, -1) * mask


def gated(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    gate = functional.silu(a) * b
    return gate + c, (gate * c).sum(-1)


def weighted_distance(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    d = torch.abs(x - y)
    return (d * w).sum(-1), torch.exp(-d)


def adam(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    m = 0.9 * m + 0.1 * g
    v = 0.99 * v + 0.01 * (g * g)
    return p - m / (torch.sqrt(v) + 1e-6), m, v


def branches(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    a = torch.exp(x * w)
    return torch.relu(x) + a, a * w


def columns(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = functional.gelu(x) * y
    return z.sum(0), z - z.mean(0)


def transposed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.sin(x) + y
    return z.t().contiguous() * 2, torch.sqrt(z * z + 1)


def log_likelihood(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    logs = torch.log_softmax(x * w, -1)
    return (logs * torch.exp(logs)).sum(-1), torch.relu(logs + 5)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


def standardized(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    z = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
    return z * w, torch.clamp(z, -1, 1)


def clipped(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.sqrt((x * x).sum(-1, keepdim=True))
    scale = torch.clamp(1 / (norm + 1e-6), max=1.0)
    return x * scale, y * w


def mixture(x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    gate = torch.sigmoid(t)
    mixed = gate * x + (1 - gate) * y
    return mixed, torch.log1p(torch.exp(mixed)).mean(-1)


# (piece, shapes of its inputs at rows x columns)
_FULL, _ROW = ("r", "c"), ("c",)
PIECES: Final[Mapping[Piece, tuple[tuple[str, ...], ...]]] = {
    mean_gate: (_FULL, _ROW, _ROW),
    added_norm: (_FULL, _FULL, _ROW),
    soft_attention: (_FULL, _ROW, _FULL),
    gated: (_FULL, _FULL, _FULL),
    weighted_distance: (_FULL, _FULL, _ROW),
    adam: (_FULL, _FULL, _FULL, _FULL),
    branches: (_FULL, _FULL),
    columns: (_FULL, _FULL),
    transposed: (_FULL, _FULL),
    log_likelihood: (_FULL, _ROW),
    rotated: (_FULL, _FULL, _FULL),
    standardized: (_FULL, _ROW),
    clipped: (_FULL, _FULL, _ROW),
    mixture: (_FULL, _FULL, _ROW),
}
SIZES: Final = ((100, 200), (384, 768), (700, 3000))
TYPES: Final = (torch.float32, torch.bfloat16)


def small_graphs() -> Iterator[tuple[str, Graph]]:
    """Every piece at several sizes, some in bf16, with a name."""
    for number, (piece, shapes) in enumerate(PIECES.items()):
        for i, (rows, columns) in enumerate(SIZES):
            dtype = TYPES[(number + i) % 4 == 0]
            size = {"r": rows, "c": columns}
            args = tuple(torch.randn([size[s] for s in shape]).to(dtype) for shape in shapes)
            graph = inference_graph(Function(piece), args)
            yield f"{piece.__name__} {rows}x{columns} {str(dtype)[6:]}", graph
