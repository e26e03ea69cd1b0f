"""Gradients of attention in kernels of ours: bodies as autograd makes them, and results."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import attention_kernels
from attention_kernels import MARGIN, UNTOUCHED, Score
from rewright.codegen.cpp import build, emit
from rewright.ir import Graph, Node, ScalarType, TensorType, Value, fresh_names, op
from rewright.ir.fx_import import from_fx
from rewright.ir.loops import (
    AttentionBackwardNest,
    AttentionNest,
    lower_attention,
    lower_attention_backward,
)
from rewright.passes.attention.backward import backward_of, with_sums
from rewright.passes.emitter import Emitter


def attention(score: Score) -> Callable[..., Tensor]:
    """Attention of queries [B, H, T, D] to keys and values of H or fewer heads, whose scores go
    through `score` before the softmax."""
    attend = attention_kernels.attention(score)

    def shared(q: Tensor, k: Tensor, v: Tensor, *read: Tensor) -> Tensor:
        heads = q.shape[1]
        return attend(q, repeated(k, heads), repeated(v, heads), *read)

    return shared


def repeated(x: Tensor, heads: int) -> Tensor:
    b, h, *rest = x.shape
    return x if h == heads else x[:, :, None].expand(b, h, heads // h, *rest).reshape(b, -1, *rest)


def with_gradients(score: Score, *inputs: Tensor) -> list[Tensor]:
    """Of queries, keys and values, from these, what the score reads, and the gradient of the
    result."""
    q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
    with torch.enable_grad():
        out = attention(score)(q, k, v, *inputs[3:-1])
        return list(torch.autograd.grad(out, (q, k, v), inputs[-1]))


@dataclass(frozen=True)
class Gradients:
    """Attention with its inputs: queries, keys, values, what the score reads, and the gradient of
    the result."""

    name: str
    score: Score
    inputs: tuple[Tensor, ...]

    def eager(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """What torch makes of it, in another type if one is given; 0 where a row has no key."""
        given = (x.to(dtype) if dtype and x.is_floating_point() else x for x in self.inputs)
        return with_gradients(self.score, *given)

    def forward(self) -> tuple[Tensor, Tensor]:
        """The result and the logarithms of its sums, in double precision, as a forward gives
        them."""
        given = [x.double() if x.is_floating_point() else x for x in self.inputs[:-1]]
        q, k = given[0], repeated(given[1], given[0].shape[1])
        t, s = q.shape[2], k.shape[2]
        scores = q @ k.mT * q.shape[-1] ** -0.5
        scores = self.score(scores, torch.arange(t)[:, None], torch.arange(s), *given[3:])
        dtype = self.inputs[0].dtype
        sums = scores.logsumexp(-1)
        sums = sums.masked_fill(sums == -math.inf, 0)
        out = attention(self.score)(*given).nan_to_num(0)
        return out.to(dtype), sums.to(torch.promote_types(dtype, torch.float32))

    def operands(self) -> tuple[Tensor, ...]:
        """As the operator takes them."""
        return (self.inputs[-1], *self.inputs[:-1], *self.forward())

    def body(self) -> Graph:
        """Of the gradient, made of what the forward does."""
        backward, node = Emitter(fresh_names(()), LIKE), self._attention()
        given = Value("given", _type(self.inputs[-1]))
        types = tuple(_type(x) for x in self.inputs[:3])
        backward_of(node, given, types, backward)
        return backward.nodes[-1].graph("body")

    def _attention(self) -> Node:
        """Which gives the logarithms of its sums too."""
        trace = make_fx(attention(self.score), tracing_mode="fake")(*self.inputs[:-1])
        traced = from_fx(trace, name="body")
        forward = Emitter(fresh_names(()), LIKE)
        forward.region("rw.attention", tuple(i.value for i in traced.inputs), traced)
        return with_sums(forward.nodes[-1], Value("sums", _type(self.forward()[1])))

    def forward_nest(self, name: str) -> AttentionNest:
        return lower_attention(self._attention().graph("body"), name)

    def nest(self, name: str) -> AttentionBackwardNest:
        return lower_attention_backward(self.body(), name)


# What nodes that are made here are named after.
LIKE = Node(op("py.neg"), (), (), (Value("made", ScalarType("int")),))


def _type(x: Tensor) -> TensorType:
    return TensorType(x.dtype, tuple(x.shape), None, x.device)


def gradients_of(cases: Sequence[Gradients]) -> list[list[Tensor]]:
    """What kernels give, all in one library."""
    nests = [case.nest(f"k{n}") for n, case in enumerate(cases)]
    library = build(emit(nests))
    return [
        _run(library.function(nest.name), nest, case.operands())
        for nest, case in zip(nests, cases, strict=True)
    ]


def _run(
    kernel: Callable[..., None], nest: AttentionBackwardNest, inputs: Sequence[Tensor]
) -> list[Tensor]:
    shapes = [[s for s in made.type.shape if isinstance(s, int)] for made in nest.outputs]
    made = [
        torch.full((math.prod(shape) + 2 * MARGIN,), UNTOUCHED, dtype=buffer.type.dtype)
        for shape, buffer in zip(shapes, nest.outputs, strict=True)
    ]
    results = [memory[MARGIN:-MARGIN] for memory in made]
    addresses = [x.data_ptr() for x in (*inputs, *results)]
    kernel((ctypes.c_void_p * len(addresses))(*addresses), None)
    for memory in made:
        around = torch.cat([memory[:MARGIN], memory[-MARGIN:]])
        assert (around == UNTOUCHED).all(), "a kernel wrote outside"
    return [
        result.as_strided(shape, [s for s in buffer.type.layout if isinstance(s, int)])
        for result, shape, buffer in zip(results, shapes, nest.outputs, strict=True)
    ]
