"""One pass over the nodes, in order, that collects substitutions and builds the graph once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from rewright.ir import Arg, Graph, Node, Value, map_values

# What a node becomes: another node with the same results, values that are already there (one for
# each result), or None when nothing applies.
Change = Node | tuple[Value, ...] | None

# The rewritten node that makes a value; None for an input or anything else.
Producer = Callable[[Arg], Node | None]


class Sweep:
    """Nodes are rewritten after everything they read, so one sweep reaches a fixed point for
    rewrites that look from a node to its producers."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes: list[Node] = []
        self._made: dict[str, Node] = {}
        self._values: dict[Value, Value] = {}
        self._changed = False

    def run(self, rewrite: Callable[[Node], Change]) -> None:
        """Apply `rewrite` to each node until it has nothing more to say."""
        for node in self._graph.nodes:
            current = node.replace(self._values)
            change = rewrite(current)
            while isinstance(change, Node):
                current = change
                change = rewrite(current)
            self._changed |= current is not node
            if change is None:
                self._emit(current)
            else:
                self._values.update(zip(current.results, change, strict=True))

    def producer(self, arg: Arg) -> Node | None:
        return self._made.get(arg.name) if isinstance(arg, Value) else None

    def graph(self) -> Graph:
        """The rewritten graph; the very one that came in when nothing changed."""
        if not self._changed and not self._values:
            return self._graph
        return dataclasses.replace(
            self._graph,
            nodes=tuple(self._nodes),
            outputs=tuple(map_values(a, self._values) for a in self._graph.outputs),
            updates=tuple((old, self._values.get(v, v)) for old, v in self._graph.updates),
        )

    def renamed(self) -> Mapping[str, tuple[str, ...]]:
        return {old.name: (new.name,) for old, new in self._values.items()}

    def _emit(self, node: Node) -> None:
        self._nodes.append(node)
        for value in node.results:
            self._made[value.name] = node
