"""Sizes that are known only while a graph runs, and the nodes that they are known from.

A node reads a size through a `Dim` in its arguments or types, which is no operand; whoever drops,
merges or moves nodes asks here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rewright.ir.dims import Symbol, symbols_of
from rewright.ir.graph import Graph, Node, dims_in, sizes_of


def late_sizes(graph: Graph) -> Mapping[str, Node]:
    """For each symbol that no input shows, the node that defines it: the first that has it in a
    result."""
    shown = {s.name for i in graph.inputs for s in symbols_of(sizes_of(i.value.type))}
    found: dict[str, Node] = {}
    for node in graph.nodes:
        for value in node.results:
            for symbol in symbols_of(sizes_of(value.type)):
                if symbol.name not in shown:
                    found.setdefault(symbol.name, node)
    return found


def symbols_read(node: Node) -> Iterator[Symbol]:
    """The symbols in a node's arguments, nested graphs and results."""
    yield from symbols_of(dims_in((node.args, *(a for _, a in node.kwargs))))
    for _, graph in node.graphs:
        yield from graph.symbols
    for value in node.results:
        yield from symbols_of(sizes_of(value.type))
