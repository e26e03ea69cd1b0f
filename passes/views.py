"""Clean-up of views: chains become one view, and views that change nothing go."""

from __future__ import annotations

import dataclasses
from typing import Final

import torch

from rewright.ir import Node, TensorType, Value, op
from rewright.passes.sweep import Producer

VIEW: Final = "aten.view.default"

# Operators that keep the row-major order of the elements.
RESHAPES: Final = (
    VIEW,
    "aten._unsafe_view.default",
    "aten.reshape.default",
    "aten.unsqueeze.default",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
)

PERMUTES: Final = ("aten.permute.default", "aten.transpose.int", "aten.t.default")


def plain_view(node: Node, producer: Producer) -> Node | None:
    """_unsafe_view(x), reshape(x) -> view(x), when x is row-major: no copy is ever made."""
    x = node.args[0]
    if not isinstance(x, Value) or not x.tensor.is_contiguous:
        return None
    return dataclasses.replace(node, op=op(VIEW))


def view_of_reshape(node: Node, producer: Producer) -> Node | None:
    """view(reshape(x, a), b) -> view(x, b)."""
    inner = producer(node.args[0])
    if inner is None or inner.op.name not in RESHAPES:
        return None
    x = inner.args[0]
    assert isinstance(x, Value)
    if not _is_one_view(x.tensor, node.result.tensor):
        return None
    return dataclasses.replace(node, args=(x, *node.args[1:]))


def undo_reshape(node: Node, producer: Producer) -> Value | None:
    """reshape(reshape(x, a), shape of x) -> x, as squeeze(unsqueeze(x))."""
    inner = producer(node.args[0])
    if inner is None or inner.op.name not in RESHAPES:
        return None
    x = inner.args[0]
    return x if isinstance(x, Value) and x.type == node.result.type else None


def compose_permutes(node: Node, producer: Producer) -> Node | Value | None:
    """permute(permute(x, p), q) -> permute(x, p[q]), or x when that moves nothing."""
    inner = producer(node.args[0])
    if inner is None or inner.op.name not in PERMUTES:
        return None
    first, second = _permutation(inner), _permutation(node)
    composed = tuple(first[axis] for axis in second)
    x = inner.args[0]
    assert isinstance(x, Value)
    if composed == tuple(range(len(composed))):
        return x
    return dataclasses.replace(node, op=op("aten.permute.default"), args=(x, composed), kwargs=())


def _permutation(node: Node) -> tuple[int, ...]:
    """Which axis of the input each axis of the result is."""
    rank = node.result.tensor.rank
    axes = list(range(rank))
    if node.op.name == "aten.t.default":
        return tuple(reversed(axes))
    if node.op.name == "aten.permute.default":
        dims = node.args[1]
        assert isinstance(dims, tuple)
        return tuple(_axis(d, rank) for d in dims)
    a, b = _axis(node.args[1], rank), _axis(node.args[2], rank)
    axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)


def _axis(dim: object, rank: int) -> int:
    assert isinstance(dim, int)
    return dim % rank if rank else 0


def _is_one_view(x: TensorType, result: TensorType) -> bool:
    """True when `x.view(result.shape)` exists and has the strides of `result`."""
    if x.strides is None and result.strides is None:
        return True
    sizes = (*x.shape, *x.layout, *result.shape, *result.layout)
    if not all(isinstance(size, int) for size in sizes):
        return False
    source = torch.empty_strided(x.shape, x.layout, dtype=x.dtype, device="meta")  # type: ignore[arg-type]
    try:
        view = source.view(result.shape)  # type: ignore[arg-type]
    except RuntimeError:
        return False
    return view.stride() == result.layout
