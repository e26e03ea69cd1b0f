"""The nodes that fusion groups, and how they depend on each other.

Views and small creations are *free*: inside a kernel they cost nothing, so every region that reads
one has its own copy. They belong to no group and stand in nobody's way; the nodes that do are the
units of fusion.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from rewright.ir import (
    Effect,
    Graph,
    Node,
    Value,
    effects_of,
    late_sizes,
    sizes_of,
    symbols_of,
    symbols_read,
)
from rewright.ir.loops import is_view, view_roots

# Of those that read nothing, not even for its type.
FREE_CREATIONS: Final = frozenset(
    {
        "aten.full.default",
        "aten.zeros.default",
        "aten.ones.default",
        "aten.scalar_tensor.default",
        "aten.arange.default",
        "aten.arange.start",
        "aten.arange.start_step",
    }
)


def is_free(node: Node) -> bool:
    """True for what may stand wherever it is read; not so where it tells a size that others use."""
    if not is_view(node):
        return node.op.name in FREE_CREATIONS
    return all(s.hint is not None for v in node.results for s in symbols_of(sizes_of(v.type)))


@dataclass(frozen=True)
class Units:
    """The units of a graph, in its order.

    `number` gives the unit that makes a value; `roots` the value behind a chain of views; `readers`
    the units that read a value, themselves or through views; `leaving` are the values that the
    graph returns, as they are or through views.
    """

    nodes: tuple[Node, ...]
    number: Mapping[Value, int]
    roots: Mapping[Value, Value]
    readers: Mapping[Value, tuple[int, ...]]
    leaving: frozenset[Value]

    @staticmethod
    def of(graph: Graph) -> Units:
        nodes = tuple(node for node in graph.nodes if not is_free(node))
        roots = view_roots(graph)
        readers: dict[Value, dict[int, None]] = {}
        for i, node in enumerate(nodes):
            for value in node.operands:
                readers.setdefault(roots[value], {})[i] = None
        return Units(
            nodes,
            {value: i for i, node in enumerate(nodes) for value in node.results},
            roots,
            {value: tuple(found) for value, found in readers.items()},
            frozenset(roots[value] for value in graph.returned),
        )

    def leaves(self, value: Value, members: Collection[int]) -> bool:
        """True when something outside `members` reads the value, or the graph returns it."""
        if value in self.leaving:
            return True
        return any(reader not in members for reader in self.readers.get(value, ()))


def sources_of(graph: Graph, units: Units) -> list[list[int]]:
    """For each unit those it must follow: who makes what it reads, also sizes, and the last of its
    effect."""
    made: dict[Value, frozenset[int]] = {}
    late = late_sizes(graph)
    makers: dict[str, frozenset[int]] = {}
    last: dict[Effect, int] = {}
    found: list[list[int]] = []
    for node in graph.nodes:
        reads = {s for value in node.operands for s in made.get(value, ())}
        if late:
            reads |= {s for symbol in symbols_read(node) for s in makers.get(symbol.name, ())}
        own = frozenset(reads)
        if not is_free(node):
            number = len(found)
            own = frozenset((number,))
            for effect in effects_of(node):
                reads |= {last[effect]} if effect in last else set()
                last[effect] = number
            found.append(sorted(reads))
        made.update((value, own) for value in node.results)
        makers.update((name, own) for name, maker in late.items() if maker is node)
    return found
