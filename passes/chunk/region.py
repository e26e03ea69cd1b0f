"""The nodes around a loss that touch something as large as its logits, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from rewright.ir import Graph, Node, Value, hint
from rewright.passes.chunk.rows import NotByRows, Rows

LOSS = "aten._log_softmax.default"


@dataclass(frozen=True)
class Region:
    """Nodes that can be computed some rows at a time, in the order of their graph, and where the
    rows of what they read and make are."""

    graph: Graph
    nodes: tuple[Node, ...]
    rows: Rows

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(node.name for node in self.nodes)

    @cached_property
    def made(self) -> frozenset[Value]:
        return frozenset(v for node in self.nodes for v in node.results)

    def leaves(self, value: Value) -> bool:
        """True for what is read outside, or returned."""
        readers = self.graph.readers.get(value, ())
        return value in self.graph.returned or any(r.name not in self.names for r in readers)


def region_of(graph: Graph, loss: Node) -> Region:
    """Everything that is connected with a loss by values at least half as large as its own. Raises
    NotByRows where that cannot be parted."""
    logits = loss.result.tensor
    if logits.rank != 2 or not all(isinstance(size, int) for size in logits.shape):
        raise NotByRows(f"%{loss.name} is no table of known sizes")
    rows = Rows(logits.shape[0])
    rows.put(loss.result, 0)
    names, todo = {loss.name}, [loss]
    while todo:
        node = todo.pop()
        rows.settle(node)
        for value in (*node.operands, *node.results):
            if not rows.has(value, hint(logits.numel) // 2):
                continue
            if value in graph.returned:
                raise NotByRows(f"%{value.name} is returned")
            for near in (graph.producers.get(value), *graph.readers.get(value, ())):
                if near is not None and near.name not in names:
                    names.add(near.name)
                    todo.append(near)
    return Region(graph, tuple(node for node in graph.nodes if node.name in names), rows)
