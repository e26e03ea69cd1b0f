"""Inferred types are those that torch gives, strides included."""

from __future__ import annotations

from collections import Counter
from functools import cache

from drawn_graphs import wide_graphs
from fuzz.search import Search
from rewright.ir import Graph, Node, TensorType, UnsupportedError
from rewright.ir.dims import equal
from rewright.ir.infer import can_infer, infer

DRAWN = 80


@cache
def drawn() -> tuple[Graph, ...]:
    found: list[Graph] = []
    for number in range(DRAWN):
        Search(wide_graphs(), found.append).run(number)
    return tuple(found)


def difference(node: Node) -> str | None:
    """Where the inferred types are not those that the node has; strides of dimensions that do not
    move say nothing."""
    for value, type in zip(node.results, infer(node), strict=True):
        told = value.type
        assert isinstance(told, TensorType) and isinstance(type, TensorType)
        same = (
            type.dtype == told.dtype
            and type.device == told.device
            and len(type.shape) == len(told.shape)
            and all(map(equal, type.shape, told.shape))
            and all(
                equal(a, b) or size == 1 or told.numel == 0
                for a, b, size in zip(type.layout, told.layout, told.shape, strict=True)
            )
        )
        if not same:
            return f"{node.op}: {type} is not {told}"
    return None


def test_types_of_drawn_graphs() -> None:
    seen = Counter[str]()
    wrong = []
    for graph in drawn():
        for node in graph.nodes:
            if not can_infer(node.op):
                continue
            try:
                found = difference(node)
            except UnsupportedError:
                continue
            seen[node.op.name] += 1
            if found:
                wrong.append(f"{found} in\n{graph.with_nodes([node])}")
    assert not wrong, "\n".join(wrong[:20])
    assert len(seen) > 100 and sum(seen.values()) > 600
