"""A pre-norm causal transformer on embeddings: LayerNorm, attention, GELU MLP, nothing more."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.case import Case, seeded


class Attention(nn.Module):
    """Causal multi-head self-attention, `[N, T, width] -> [N, T, width]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        joined: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return joined


class Block(nn.Module):
    """Attention and MLP, each normalized before and added after; `[N, T, width]` to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = x + self.attention(self.attention_norm(x))
        y: Tensor = attended + self.mlp(self.mlp_norm(attended))
        return y


class Transformer(nn.Module):
    """`[N, T, width] -> [N, T, width]`."""

    def __init__(self, depth: int = 2, width: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.blocks(x))
        return y


def two_block_transformer(
    batch: int = 2, length: int = 128, *, depth: int = 2, width: int = 256, heads: int = 4
) -> Case:
    with seeded(0):
        return Transformer(depth, width, heads).eval(), (torch.randn(batch, length, width),)
