"""May I: which nodes a region may hold, and which groups may become one region.

Never asks what a merge costs. Every refusal is a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewright.ir import (
    DTYPE_NAMES,
    Effect,
    Kind,
    Node,
    Size,
    TensorType,
    UnsupportedError,
    Value,
    compute_dtype,
    effect_of,
    equal,
    pointwise_obstacle,
    product,
    symbols_of,
    symbols_read,
)
from rewright.ir.loops import OPERATORS, Order, order_of, reduced_count, reduced_dims

if TYPE_CHECKING:
    from rewright.ir.target import Target


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

    def difference(self, other: Domain) -> str:
        """Why there is no space of both, as a sentence says it."""
        if str(self) == str(other):
            return "they add up in different orders, as what they read lies in memory"
        return f"their spaces differ ({self}, {other})"

    def __str__(self) -> str:
        if self.rows is None:
            return f"{self.elements} elements"
        return f"{self.elements} elements in {self.rows} rows"


def obstacle(node: Node, target: Target) -> str | None:
    """Why the node cannot be part of a kernel of ours, or None."""
    if effect_of(node) is not Effect.NONE:
        return f"{node.op} has an effect ({effect_of(node).value})"
    if node.op.kind is Kind.CONTRACTION:
        return f"{node.op} runs as a library call"
    if node.op.kind is Kind.REGION:
        return f"{node.op} is a kernel by itself"
    if node.op.kind is not Kind.POINTWISE and node.op.name not in OPERATORS:
        return f"{node.op} has no kernel of ours"
    for value in (*node.operands, *node.results):
        if (why := _value_obstacle(value, target)) is not None:
            return why
    late = next((s.name for s in symbols_read(node) if s.hint is None), None)
    if late is not None:
        return f"it reads the size {late}, which depends on the data"
    return pointwise_obstacle(node) if node.op.kind is Kind.POINTWISE else None


def _value_obstacle(value: Value, target: Target) -> str | None:
    type = value.type
    if not isinstance(type, TensorType):
        return f"%{value.name} is not a tensor"
    if any(s.hint is None for s in symbols_of((*type.shape, *type.layout))):
        return f"%{value.name} has a size that depends on the data"
    try:
        compute_dtype(type.dtype)
    except UnsupportedError as error:
        return error.message
    if not any(type.dtype in emitter.dtypes for emitter in target.emitters):
        return f"kernels for {target.name} do not take {DTYPE_NAMES[type.dtype]}"
    if type.device.type != target.device:
        return f"%{value.name} is on {type.device}, kernels are for {target.name}"
    return None


def domain_of(node: Node) -> Domain:
    """The iteration space that a single node needs."""
    results = Domain(max((v.tensor for v in node.results), key=lambda t: t.nbytes_hint).numel)
    if node.op.kind is not Kind.REDUCTION or reduced_count(node) == 1:
        return results
    shape, dims = node.operands[0].tensor.shape, reduced_dims(node)
    rows = product(size for d, size in enumerate(shape) if d not in dims)
    return Domain(product(shape), rows, order_of(node))
