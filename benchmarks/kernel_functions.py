"""The functions that `kernels.toml` names: each maker takes a shape and gives a `Prepared` function
with its inputs, of which those that a training step differentiates require gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Shape = Sequence[int]


class Prepared(NamedTuple):
    """A function with its inputs, and its matrix products alone where its time is theirs."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    products: Callable[[], object] | None = None


def _random(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape)).requires_grad_()


def gelu_of_biased(shape: Shape) -> Prepared:
    """`x, y [..., n], bias [n] -> [..., n]`."""

    def function(x: Tensor, bias: Tensor, y: Tensor) -> Tensor:
        return F.gelu(x + bias) * y

    return Prepared(function, (_random(*shape), _random(shape[-1]), _random(*shape)))


def soft_cap(shape: Shape) -> Prepared:
    def function(x: Tensor) -> Tensor:
        return 50.0 * torch.tanh(x / 50.0)

    return Prepared(function, (_random(*shape),))


def swiglu_gate(shape: Shape) -> Prepared:
    """`gate, up [..., n] -> [..., n]`."""

    def function(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    return Prepared(function, (_random(*shape), _random(*shape)))


def transposed_sum(shape: Shape) -> Prepared:
    """`x [m, n], y [n, m] -> [m, n]`: one of both is read across its rows."""

    def function(x: Tensor, y: Tensor) -> Tensor:
        return x.relu() + y.transpose(0, 1)

    return Prepared(function, (_random(*shape), _random(*shape[::-1])))


def softmax(shape: Shape) -> Prepared:
    def function(x: Tensor) -> Tensor:
        return x.softmax(-1)

    return Prepared(function, (_random(*shape),))


def masked_softmax(shape: Shape) -> Prepared:
    """Scores `[B, H, T, S]` and a mask `[B, 1, 1, S]` of added numbers."""

    def function(scores: Tensor, mask: Tensor) -> Tensor:
        return (scores * 0.125 + mask).softmax(-1)

    mask = torch.zeros(shape[0], 1, 1, shape[-1]).masked_fill_(torch.rand(shape[-1]) < 0.2, -1e9)
    return Prepared(function, (_random(*shape), mask))


def layer_norm(shape: Shape) -> Prepared:
    """`x [..., n], weight and bias [n] -> [..., n]`, normalized over the last dimension."""

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias)

    return Prepared(function, (_random(*shape), _random(shape[-1]), _random(shape[-1])))


def residual_layer_norm(shape: Shape) -> Prepared:
    """`x, y [..., n] -> [..., n]`: their sum, normalized."""

    def function(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x + y, weight.shape, weight, bias)

    rows = _random(*shape), _random(*shape)
    return Prepared(function, (*rows, _random(shape[-1]), _random(shape[-1])))


def rms_norm(shape: Shape) -> Prepared:
    """As the Llama of `transformers` spells it."""

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    return Prepared(function, (_random(*shape), _random(shape[-1])))


def cross_entropy(shape: Shape) -> Prepared:
    """`logits [n, classes], wanted [n] -> []`."""

    def function(logits: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(logits, wanted)

    return Prepared(function, (_random(*shape), torch.randint(shape[1], (shape[0],))))


def rotary(shape: Shape) -> Prepared:
    """Rotary position embedding (Su et al., 2021) of `x [B, H, T, D]`, halves apart as in Llama."""

    def function(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    angles = torch.rand(shape[-2], shape[-1])
    return Prepared(function, (_random(*shape), angles.cos(), angles.sin()))


def gelu_mlp(shape: Shape) -> Prepared:
    """`x [n, d]`, four times as wide inside."""
    rows, width = shape

    def function(x: Tensor, up: Tensor, bias: Tensor, down: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, up, bias)), down)

    up, down = _weight(4 * width, width), _weight(width, 4 * width)
    inputs = (_random(rows, width), up, _random(4 * width), down)

    def products() -> Tensor:
        return F.linear(F.linear(inputs[0], up), down)

    return Prepared(function, inputs, products)


def swiglu_mlp(shape: Shape) -> Prepared:
    """`x [n, d]`, 11/4 as wide inside, as in Llama."""
    rows, width = shape
    inner = width * 11 // 4

    def function(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    gate, up, down = _weight(inner, width), _weight(inner, width), _weight(width, inner)
    inputs = (_random(rows, width), gate, up, down)

    def products() -> Tensor:
        F.linear(inputs[0], gate)
        return F.linear(F.linear(inputs[0], up), down)

    return Prepared(function, inputs, products)


def _weight(outputs: int, inputs: int) -> Tensor:
    return _random(outputs, inputs, scale=inputs**-0.5)


def attention(shape: Shape) -> Prepared:
    """Causal, of `q, k, v [B, H, T, D]`."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    q, k, v = (_random(*shape) for _ in range(3))
    return Prepared(function, (q, k, v), _attention_products(q, k, v))


def biased_attention(shape: Shape) -> Prepared:
    """With a bias `[H, T, T]`, spelled out."""

    def function(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = torch.matmul(q, k.transpose(-1, -2)) * (q.shape[-1] ** -0.5) + bias
        return torch.matmul(scores.softmax(-1), v)

    q, k, v = (_random(*shape) for _ in range(3))
    bias = _random(shape[1], shape[2], shape[2])
    return Prepared(function, (q, k, v, bias), _attention_products(q, k, v))


def _attention_products(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    return lambda: torch.matmul(torch.matmul(q, k.transpose(-1, -2)), v)


MAKERS: Final[Mapping[str, Callable[[Shape], Prepared]]] = {
    make.__name__: make
    for make in (
        *(gelu_of_biased, soft_cap, swiglu_gate, transposed_sum, softmax, masked_softmax),
        *(layer_norm, residual_layer_norm, rms_norm, cross_entropy, rotary, gelu_mlp),
        *(swiglu_mlp, attention, biased_attention),
    )
}
