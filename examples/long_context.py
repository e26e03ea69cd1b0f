"""Attention over 4,096 tokens: what masks leave out is found, a window is asked for, or chosen.

python -m examples.long_context
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.benchmark import Timer

import rewright
from rewright import Compiled


class Documents(nn.Module):
    """Causal attention inside documents that lie one behind the other; `q`, `k`, `v` are
    `[1, heads, T, width]`, `document` says of each of T tokens whose it is."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, document: Tensor) -> Tensor:
        place = torch.arange(q.shape[2])
        seen = (document[:, None] == document) & (place <= place[:, None])
        return scaled_dot_product_attention(q, k, v, attn_mask=seen)


class Causal(nn.Module):
    """Every token sees those before it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)


def main() -> None:
    """Eight documents found in a mask; a window by name; a window within an error."""
    torch.manual_seed(0)
    qkv = tuple(torch.randn(1, 4, 4096, 64) for _ in range(3))
    inputs = (*qkv, torch.arange(4096) // 512)
    compare("8 documents", Documents(), inputs, rewright.optimize(Documents(), inputs))
    narrowed = rewright.optimize(Causal(), qkv, attention="window{size=512,sinks=4}")
    compare("window of 512", Causal(), qkv, narrowed)
    print(narrowed.why("window"))


def compare(name: str, model: nn.Module, inputs: tuple[Tensor, ...], program: Compiled) -> None:
    with torch.no_grad():
        exact, found = model(*inputs), program(*inputs)
        calls = {"call": model, "inputs": inputs}, {"call": program, "inputs": inputs}
        eager, ours = (Timer("call(*inputs)", globals=c).timeit(5).median * 1e3 for c in calls)
    error = float((found - exact).norm() / exact.norm())
    print(f"{name}: {ours:.0f} ms, PyTorch's own takes {eager:.0f} ms; differs by {error:.0e}")
    print(program.why("flash-attention"))


if __name__ == "__main__":
    main()
