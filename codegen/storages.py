"""What a call sequence must know of a kernel-level graph's storages: who reads them, until when."""

from __future__ import annotations

from collections.abc import Mapping

from rewright.ir import Graph, Kind, Node, TensorType, Value, values_in


def windows_of(roots: Mapping[Value, Value]) -> Mapping[Value, list[Value]]:
    """The values that share each storage."""
    found: dict[Value, list[Value]] = {}
    for value, root in roots.items():
        found.setdefault(root, []).append(value)
    return found


def result_of_buffer(graph: Graph) -> dict[Value, Value]:
    found: dict[Value, Value] = {}
    for node in graph.nodes:
        out = node.kwarg("out")
        if isinstance(out, tuple):
            found.update(
                (b, v) for b, v in zip(out, node.results, strict=True) if isinstance(b, Value)
            )
    return found


def kept_storages(graph: Graph, roots: Mapping[Value, Value]) -> set[Value]:
    """Storages that live until the end: of outputs, and of what is written back."""
    returned = {*graph.returned, *values_in(graph.outputs)}
    return {roots[v] for v in returned} | {target for target, _ in graph.updates}


def read_by_kernels(graph: Graph, roots: Mapping[Value, Value]) -> set[Value]:
    """Storages that regions read, themselves or through views."""
    regions = (node for node in graph.nodes if node.op.kind is Kind.REGION)
    return {roots[v] for region in regions for v in region.operands}


def last_reads(graph: Graph, roots: Mapping[Value, Value]) -> dict[int, list[Value]]:
    """Node -> inputs whose storage nothing reads after it: the caller may have given them up."""
    inputs, kept = {i.value for i in graph.inputs}, kept_storages(graph, roots)
    last: dict[Value, Node] = {}
    for node in graph.nodes:
        for value in node.operands:
            last[roots[value]] = node
    found: dict[int, list[Value]] = {}
    for value, node in last.items():
        if value in inputs and value not in kept and isinstance(value.type, TensorType):
            found.setdefault(id(node), []).append(value)
    return found
