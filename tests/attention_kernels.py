"""Attention in kernels of ours, from torch functions to numbers: the masks that people use, bodies
traced with them, and kernels of many bodies in one library, run between margins."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from rewright.codegen.cpp import build, emit
from rewright.ir.fx_import import from_fx
from rewright.ir.loops import AttentionNest, lower_attention

# Of scores [B, H, T, S], of positions of queries [T, 1] and of keys [S], and of what is read.
Score = Callable[..., Tensor]

MARGIN: Final = 64
UNTOUCHED: Final = 7.0


class Shape(NamedTuple):
    """Queries [B, H, T, D], keys [B, H, S, D] and values [B, H, S, E]."""

    b: int
    h: int
    t: int
    s: int
    d: int
    e: int


def attention(score: Score) -> Callable[..., Tensor]:
    """Attention whose scores go through `score` before the softmax."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *read: Tensor) -> Tensor:
        b, h, t, d = q.shape
        s, e = v.shape[2:]
        products = torch.bmm(q.reshape(b * h, t, d), k.reshape(b * h, s, d).transpose(1, 2))
        scores = products.view(b, h, t, s) * d**-0.5
        scores = score(scores, torch.arange(t)[:, None], torch.arange(s), *read)
        weights = torch.ops.aten._softmax(scores, -1, False)
        return torch.bmm(weights.view(b * h, t, s), v.reshape(b * h, s, e)).view(b, h, t, e)

    return attend


def nest_of(score: Score, inputs: Sequence[Tensor], name: str = "attention") -> AttentionNest:
    """The nest of attention with these scores, traced on `inputs`."""
    trace = make_fx(attention(score), tracing_mode="fake")
    return lower_attention(from_fx(trace(*inputs), name="body"), name)


def numbers(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values."""
    b, h, t, s, d, e = shape
    q, k, v = (torch.randn(b, h, *rest) for rest in ((t, d), (s, d), (s, e)))
    return q.to(dtype), k.to(dtype), v.to(dtype)


# --- running ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Attention with its inputs: queries, keys, values, and what the score reads."""

    name: str
    score: Score
    inputs: tuple[Tensor, ...]

    def eager(self, dtype: torch.dtype | None = None) -> Tensor:
        """What torch makes of it, in another type if one is given; 0 where a row has no key."""
        given = (x.to(dtype) if dtype and x.is_floating_point() else x for x in self.inputs)
        return attention(self.score)(*given).nan_to_num(0)


def outputs_of(cases: Sequence[Case]) -> list[Tensor]:
    """What kernels give, all in one library."""
    nests = [nest_of(case.score, case.inputs, f"k{n}") for n, case in enumerate(cases)]
    library = build(emit(nests))
    return [
        _run(library.function(nest.name), nest, case.inputs)
        for nest, case in zip(nests, cases, strict=True)
    ]


def _run(kernel: Callable[..., None], nest: AttentionNest, inputs: Sequence[Tensor]) -> Tensor:
    (made,) = nest.outputs
    shape = [size for size in made.type.shape if isinstance(size, int)]
    size = math.prod(shape)
    memory = torch.full((size + 2 * MARGIN,), UNTOUCHED, dtype=made.type.dtype)
    result = memory[MARGIN : MARGIN + size]
    addresses = [x.data_ptr() for x in (*inputs, result)]
    kernel((ctypes.c_void_p * len(addresses))(*addresses), None)
    around = torch.cat([memory[:MARGIN], memory[MARGIN + size :]])
    assert (around == UNTOUCHED).all(), "a kernel wrote outside"
    return result.view(shape)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative, in L2; to 1 where all of `wanted` is 0."""
    return float((found.double() - wanted).norm() / (wanted.norm() or 1))


# --- masks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mask:
    """`read` makes what `score` reads from memory."""

    score: Score
    read: Callable[[Shape, torch.dtype], tuple[Tensor, ...]] = lambda shape, dtype: ()


def kept(keep: Callable[..., Any], other: float = -math.inf) -> Score:
    """Scores where keep(i, j, ...) is true, and `other` elsewhere."""
    return lambda scores, i, j, *read: torch.where(keep(i, j, *read), scores, other)


def _documents(i: Tensor, j: Tensor, ids: Tensor) -> Tensor:
    own, theirs = ids[:, None, : len(i), None], ids[:, None, None, : len(j)]
    return (own == theirs) & (j <= i)


def _ids(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    ids = torch.randint(0, 4, (shape.b, max(shape.t, shape.s)))
    return (ids.sort(1).values,)


def _padding(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    lengths = torch.linspace(shape.s, 1, shape.b).long()
    return (torch.arange(shape.s) < lengths[:, None],)


def _dense(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    keep = torch.rand(shape.t, shape.s) < 0.5
    keep[:, 0] = True
    return (keep,)


def _bias(other: Callable[[torch.dtype], float]) -> Callable[..., tuple[Tensor, ...]]:
    def read(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
        (keep,) = _dense(shape, dtype)
        drawn = torch.randn(shape.b, 1, shape.t, shape.s)
        return (drawn.masked_fill(~keep, -math.inf).to(dtype).clamp(min=other(dtype)),)

    return read


def additive(scores: Tensor, i: Tensor, j: Tensor, bias: Tensor) -> Tensor:
    return scores + bias


def _alibi(scores: Tensor, i: Tensor, j: Tensor) -> Tensor:
    slopes = torch.pow(2.0, -1.0 - torch.arange(scores.shape[1]))[:, None, None]
    return scores + (-(i - j).abs() * slopes).to(scores.dtype)


def _capped(scores: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return torch.tanh(scores / 2) * 2


MASKS: Final[Mapping[str, Mask]] = {
    "none": Mask(lambda scores, i, j: scores),
    "causal": Mask(kept(lambda i, j: j <= i)),
    "window": Mask(kept(lambda i, j: (j <= i) & (i - j < 50))),
    "sinks": Mask(kept(lambda i, j: (j <= i) & ((i - j < 20) | (j < 4)))),
    "chunks": Mask(kept(lambda i, j: (i // 32 == j // 32) & (j <= i))),
    "prefix": Mask(kept(lambda i, j: (j <= i) | (j < 40))),
    "documents": Mask(kept(_documents), _ids),
    "padding": Mask(kept(lambda i, j, keep: keep[:, None, None]), _padding),
    "dense": Mask(kept(lambda i, j, keep: keep), _dense),
    "additive": Mask(additive, _bias(lambda dtype: -math.inf)),
    "lowest": Mask(additive, _bias(lambda dtype: torch.finfo(dtype).min)),
    "capped": Mask(_capped),
    "alibi": Mask(_alibi),
}
