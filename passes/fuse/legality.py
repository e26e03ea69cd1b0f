"""May I: which nodes a region may hold, and which groups may become one region.

Never asks what a merge costs. Every refusal is a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewright.ir import (
    Effect,
    Kind,
    Node,
    Size,
    TensorType,
    UnsupportedError,
    compute_dtype,
    effect_of,
    equal,
    pointwise_obstacle,
    product,
    symbols_of,
)
from rewright.ir.loops import OPERATORS, Order, order_of, reduced_dims


@dataclass(frozen=True)
class Domain:
    """The iteration space of a group: its elements and, with reductions, rows and their order."""

    elements: Size
    rows: Size | None = None
    order: Order | None = None

    def join(self, other: Domain) -> Domain | None:
        """The space of both groups in one kernel; None when there is none."""
        if self.rows is None and other.rows is None:
            return self if equal(self.elements, other.elements) else None
        if self.rows is None:
            return other.join(self)
        if other.rows is None:
            fits = equal(other.elements, self.elements) or equal(other.elements, self.rows)
            return self if fits else None
        same = equal(self.elements, other.elements) and equal(self.rows, other.rows)
        return self if same and self.order == other.order else None


def obstacle(node: Node) -> str | None:
    """Why the node cannot be part of a kernel of ours, or None."""
    if effect_of(node) is not Effect.NONE:
        return f"{node.op} has an effect ({effect_of(node).value})"
    for value in (*node.operands, *node.results):
        if (why := _type_obstacle(value.name, value.type)) is not None:
            return why
    if node.op.kind is Kind.POINTWISE:
        return pointwise_obstacle(node)
    if node.op.name in OPERATORS:
        return None
    if node.op.kind is Kind.CONTRACTION:
        return f"{node.op} runs as a library call"
    return f"{node.op} has no kernel of ours"


def _type_obstacle(name: str, type: object) -> str | None:
    if not isinstance(type, TensorType):
        return f"%{name} is not a tensor"
    if any(s.hint is None for s in symbols_of((*type.shape, *type.layout))):
        return f"%{name} has a size that depends on the data"
    try:
        compute_dtype(type.dtype)
    except UnsupportedError as error:
        return error.message
    return None


def domain_of(node: Node) -> Domain:
    """The iteration space that a single node needs."""
    if node.op.kind is not Kind.REDUCTION:
        return Domain(max((v.tensor for v in node.results), key=lambda t: t.nbytes_hint).numel)
    shape = node.operands[0].tensor.shape
    dims = reduced_dims(node)
    rows = product(size for d, size in enumerate(shape) if d not in dims)
    return Domain(product(shape), rows, order_of(node))
