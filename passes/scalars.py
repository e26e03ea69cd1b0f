"""One-number tensors that flow into arithmetic become Python numbers, where that is exact."""

from __future__ import annotations

import dataclasses
from typing import Final

from rewright.ir import Graph, Node, TensorType, Value, is_dense, op
from rewright.ir.facts import COMMUTATIVE
from rewright.ir.numbers import number_of
from rewright.passes.sweep import Producer, Sweep

# Operators whose Tensor and Scalar overloads compute the same bits when the number is one of the
# tensor's own dtype. Division is not among them: some devices multiply by the reciprocal.
_OVERLOADS: Final = {
    f"aten.{name}.Tensor": f"aten.{name}.Scalar"
    for name in ("add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge")
}


def scalar_arguments(graph: Graph) -> Graph:
    """mul(x, full([], 2.0)) -> mul(x, 2.0)."""
    sweep = Sweep(graph)
    sweep.run(lambda node: _with_scalar(node, sweep.producer))
    return sweep.graph()


def _with_scalar(node: Node, producer: Producer) -> Node | None:
    overload = _OVERLOADS.get(node.op.name)
    if overload is None or node.kwargs or len(node.args) != 2:
        return None
    orders = [node.args, node.args[::-1]] if node.op.name in COMMUTATIVE else [node.args]
    for x, other in orders:
        source = producer(other)
        if source is None or len(source.results) != 1 or not isinstance(x, Value):
            continue
        if not _fits(x, source, node):
            continue
        number = number_of(source)
        if number is not None:
            return dataclasses.replace(node, op=op(overload), args=(x, number))
    return None


def _fits(x: Value, source: Node, node: Node) -> bool:
    """True when the other operand decides neither dtype, shape nor strides of the result."""
    type, other, result = x.type, source.result.type, node.result.type
    if not (isinstance(type, TensorType) and isinstance(result, TensorType)):
        return False
    if not isinstance(other, TensorType):
        return False
    if other.dtype != type.dtype or result.shape != type.shape:
        return False
    return is_dense(type) and result.layout == type.layout
