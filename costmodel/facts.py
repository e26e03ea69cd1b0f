"""Facts about single nodes, of which sketches of kernels are made: each node is looked at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch

from rewright.ir import Kind, Node, TensorType, UnsupportedError, Value, hint
from rewright.ir.expr import Call, Scalar
from rewright.ir.loops import OPERATORS, order_of, reduced_count, reduced_dims
from rewright.ir.pointwise import scalar_expr
from rewright.ir.work import distinct, per_reduced_element

# How often a reduction goes over its elements; others do so once.
SWEEPS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("aten._softmax.default", "aten._log_softmax.default"), 3),
    **dict.fromkeys(("aten.native_layer_norm.default", "aten.var_mean.correction"), 3),
    **dict.fromkeys(("aten.var.correction", "aten.std.correction"), 2),
    **dict.fromkeys(("aten._softmax_backward_data.default", "aten._fused_rms_norm.default"), 2),
    "aten._log_softmax_backward_data.default": 2,
    "aten.logsumexp.default": 2,
}
# Primitives by what they cost: a division or root, an exponential, a tangent or power.
_DIVISIONS: Final = ("div", "reciprocal", "sqrt", "rsqrt", "div_floor", "div_trunc", "fmod")
_EXPONENTIALS: Final = ("exp", "exp2", "log", "log2", "log10", "erf", "expm1", "log1p", "sigmoid")
CLASSES: Final[Mapping[str, int]] = {
    **dict.fromkeys((*_DIVISIONS, "remainder"), 1),
    **dict.fromkeys((*_EXPONENTIALS, "sin", "cos", "erfc"), 2),
    **dict.fromkeys(("tanh", "sinh", "cosh", "tan", "asin", "acos", "atan", "atan2"), 3),
    **dict.fromkeys(("asinh", "acosh", "atanh", "erfinv", "hypot", "pow", "lgamma"), 3),
}
# How a kernel goes through memory for an operand, next to the order in which it runs.
CONTIGUOUS, SMALL, STRIDED, GATHERED = range(4)


@dataclass(frozen=True, slots=True)
class Facts:
    """One node: its space, its operations by class, and what it reads and writes.

    A read is (number, way, bytes, width): of the value behind views, how memory is gone through,
    the bytes that are seen of it, and the class of its type. A write is (number, bytes, width).
    """

    elements: int
    rows: int
    columns: bool
    inner: int
    work: tuple[int, int, int, int]
    sweeps: int
    reads: tuple[tuple[int, int, int, int], ...]
    writes: tuple[tuple[int, int, int], ...]
    strided_writes: int
    guarded: bool


def facts(node: Node, number: Callable[[Value], int]) -> Facts:
    """What a node that is no view does by itself."""
    results = [v for v in node.results if isinstance(v.type, TensorType)]
    result = max((v.tensor for v in results), key=lambda t: t.nbytes_hint)
    space, elements, rows, columns = result, hint(result.numel), 0, False
    if node.op.kind is Kind.REDUCTION and hint(reduced_count(node)) > 1:
        space = node.operands[0].tensor
        dims = reduced_dims(node)
        elements = hint(space.numel)
        rows = max(1, elements // max(1, hint(reduced_count(node))))
        columns = order_of(node).style == "columns"
        inner = _last([d for d in range(len(space.shape)) if (d in dims) != columns], space)
    else:
        inner = _last(list(range(len(space.shape))), space)
    fast, along = inner
    reads = tuple(_reads(node, space, fast, number))
    written = [(v.tensor, hint(v.tensor.numel)) for v in results]
    strided = sum(n for type, n in written if _way(type, n, space, fast) == STRIDED)
    return Facts(
        elements,
        rows,
        columns,
        along,
        tuple(n * elements for n in _work(node)),  # type: ignore[arg-type]
        SWEEPS.get(node.op.name, 1),
        reads,
        tuple((number(v), v.tensor.nbytes_hint, _width(v.tensor.dtype)) for v in results),
        strided,
        node.op.kind is Kind.INDEX or _is_guarded(node),
    )


def _is_guarded(node: Node) -> bool:
    """True for padding, concatenation and the like, whose reads stand behind conditions."""
    return node.op.name in OPERATORS and node.op.kind is not Kind.REDUCTION


def _last(dims: Sequence[int], space: TensorType) -> tuple[int | None, int]:
    """(the dimension along which neighbours lie, counted from the end; its length)."""
    rank = len(space.shape)
    moving = [d for d in dims if hint(space.shape[d]) != 1]
    if not moving:
        return None, 1
    fast = min(moving, key=lambda d: (hint(space.layout[d]) or 1 << 60, -d))
    return rank - fast, hint(space.shape[fast])


def _reads(
    node: Node, space: TensorType, fast: int | None, number: Callable[[Value], int]
) -> Iterator[tuple[int, int, int, int]]:
    for value in dict.fromkeys(node.operands):
        type = value.type
        if not isinstance(type, TensorType):
            continue
        seen = hint(distinct(type))
        way = _way(type, seen, space, fast)
        if node.op.kind is Kind.INDEX and value == node.args[0]:
            seen, way = min(seen, hint(node.results[0].tensor.numel)), GATHERED
        yield number(value), way, seen * type.dtype.itemsize, _width(type.dtype)


def _way(type: TensorType, seen: int, space: TensorType, fast: int | None) -> int:
    """How memory of `type`, `seen` elements of it, is gone through by a kernel that runs along
    `fast` of `space`."""
    if 2 * seen <= hint(space.numel):
        return SMALL
    if fast is None or fast > len(type.shape) or hint(type.shape[-fast]) == 1:
        return CONTIGUOUS
    return CONTIGUOUS if hint(type.layout[-fast]) <= 1 else STRIDED


def _work(node: Node) -> tuple[int, int, int, int]:
    """Operations for each element, by class."""
    if node.op.kind is Kind.REDUCTION:
        simple, exponentials = per_reduced_element(node)
        return (simple, 0, exponentials, 0)
    if node.op.kind is not Kind.POINTWISE:
        return (1, 0, 0, 0)
    try:
        expr = scalar_expr(node).expr
    except UnsupportedError:
        return (1, 0, 0, 0)
    counts = [0, 0, 0, 0]
    _count(expr, counts)
    return (counts[0], counts[1], counts[2], counts[3])


def _count(expr: Scalar, counts: list[int]) -> None:
    if isinstance(expr, Call):
        counts[CLASSES.get(expr.name, 0)] += 1
        for arg in expr.args:
            _count(arg, counts)


_WIDTHS: Final = {2: 0, 1: 0, 8: 1}


@cache
def _width(dtype: torch.dtype) -> int:
    """0: half types and narrower floats, 1: double, 2: integers and truth, 3: f32."""
    return _WIDTHS.get(dtype.itemsize, 3) if dtype.is_floating_point else 2
