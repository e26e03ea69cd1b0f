"""A multi-layer perceptron: linear layers with GELU and dropout between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from examples.case import Case, seeded


class MLP(nn.Module):
    """`[N, widths[0]] -> [N, widths[-1]]`."""

    def __init__(self, widths: Sequence[int] = (784, 1024, 1024, 10), dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(fan_in, out) for fan_in, out in pairwise(widths))
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.dropout(self.activation(layer(x)))
        y: Tensor = last(x)
        return y


def mlp(
    batch: int = 64, *, widths: Sequence[int] = (784, 1024, 1024, 10), dropout: float = 0.0
) -> Case:
    with seeded(0):
        return MLP(widths, dropout).eval(), (torch.randn(batch, widths[0]),)
