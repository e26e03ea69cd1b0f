"""Which values share memory: one answer, computed from view facts."""

from __future__ import annotations

from collections.abc import Mapping

from rewright.ir.graph import Graph, Node, Value
from rewright.ir.ops import Kind


def shares_input_storage(node: Node) -> bool:
    """True when every result is a window of the first operand's storage."""
    return node.op.kind is Kind.VIEW and bool(node.operands)


def storage_roots(graph: Graph) -> Mapping[Value, Value]:
    """For every value the value that owns its storage (itself when it has its own)."""
    roots: dict[Value, Value] = {i.value: i.value for i in graph.inputs}
    for node in graph.nodes:
        base = roots[node.operands[0]] if shares_input_storage(node) else None
        for value in node.results:
            roots[value] = value if base is None else base
    return roots
