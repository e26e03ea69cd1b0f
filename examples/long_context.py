"""Attention over long contexts: what masks leave out is found; windows are asked for, or chosen.

python -m examples.long_context
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.benchmark import Timer

import rewright
from rewright import Compiled


class Causal(nn.Module):
    """Of `q`, `k`, `v` `[1, heads, T, width]`; tokens see others of their `document` only."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, document: Tensor) -> Tensor:
        place = torch.arange(q.shape[2])
        seen = (document[:, None] == document) & (place <= place[:, None])
        return scaled_dot_product_attention(q, k, v, attn_mask=seen)


class Fading(nn.Module):
    """Causal; the farther away a token, the less it counts, in some heads more than in others."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        far = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
        slopes = torch.tensor([0.5, 0.1, 0.02, 0.0])[None, :, None, None]
        bias = (-slopes * far).masked_fill(far < 0, float("-inf"))
        return scaled_dot_product_attention(q, k, v, attn_mask=bias)


def main() -> None:
    """Documents in a mask; a window by name; windows within an error of a hundredth."""
    torch.manual_seed(0)
    qkv = [tuple(torch.randn(1, 4, 2048, 64) for _ in range(3)) for _ in range(3)]
    inputs = (*qkv[0], torch.arange(2048) // 256)
    compare("8 documents", Causal(), inputs, rewright.optimize(Causal(), inputs))
    program = rewright.optimize(Fading(), qkv[0], attention="window{size=256,sinks=4}")
    compare("window of 256", Fading(), qkv[0], program)
    program = rewright.optimize(Fading(), qkv[0], error_budget=0.01, calibration=qkv)
    compare("error of 0.01", Fading(), qkv[0], program)
    print(program.why("quantize"))


def compare(name: str, model: nn.Module, inputs: tuple[Tensor, ...], program: Compiled) -> None:
    with torch.no_grad():
        error = float((program(*inputs) - model(*inputs)).norm() / model(*inputs).norm())
        calls = {"call": model, "inputs": inputs}, {"call": program, "inputs": inputs}
        eager, ours = (Timer("call(*inputs)", globals=c).timeit(5).median * 1e3 for c in calls)
    print(f"{name}: {ours:.0f} ms, PyTorch's own {eager:.0f} ms; relative error {error:.1e}")


if __name__ == "__main__":
    main()
