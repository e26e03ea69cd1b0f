"""Regions of some units of a graph."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from rewright.ir import (
    Graph,
    Input,
    Node,
    UnsupportedError,
    Value,
    graph_key,
    op,
    symbols_read,
)
from rewright.ir.loops import is_view, lower, needed_nodes
from rewright.passes.fuse.units import Units, is_free


class Maker:
    """Makes regions of units, with the views and creations that they read."""

    def __init__(self, graph: Graph, units: Units) -> None:
        self.graph, self.units = graph, units
        self._position = {v: i for i, node in enumerate(graph.nodes) for v in node.results}
        self._verdicts: dict[Hashable, str | None] = {}
        self._regions: dict[tuple[int, ...], Node | str] = {}

    def region(self, members: Sequence[int]) -> Node | str:
        """The region of some units, or why there is no loop nest for it."""
        key = tuple(members)
        if key not in self._regions:
            self._regions[key] = self._region(members)
        return self._regions[key]

    def _region(self, members: Sequence[int]) -> Node | str:
        nodes, results = [self.units.nodes[unit] for unit in members], self.leaving(members)
        why: str | None = None
        for views_of_outside in (True, False):
            copied = self._copied(nodes, views_of_outside=views_of_outside)
            inner = sorted((*nodes, *copied), key=lambda n: self._position[n.results[0]])
            region = make_region(inner, results, nodes[-1])
            why = self.obstacle(region)
            if why is None:
                return region
        assert why is not None
        return why

    def leaving(self, members: Sequence[int]) -> tuple[Value, ...]:
        inside = set(members)
        results = (v for unit in members for v in self.units.nodes[unit].results)
        return tuple(v for v in results if self.units.leaves(v, inside))

    def _copied(self, members: Sequence[Node], *, views_of_outside: bool) -> list[Node]:
        """Views and creations that the members read and that cost nothing inside the region.

        A view of a value made outside is copied only with `views_of_outside`; otherwise the region
        takes the view itself as a strided input, as it does when the view depends on a late size.
        """
        own = {v for node in members for v in node.results}
        copied: dict[Value, Node] = {}
        todo = [v for node in members for v in node.operands]
        while todo:
            value = todo.pop()
            node = self.graph.producers.get(value)
            if node is None or not is_free(node) or node.results[0] in copied:
                continue
            if any(symbol.hint is None for symbol in symbols_read(node)):
                continue
            if is_view(node) and not views_of_outside and self.units.roots[value] not in own:
                continue
            copied[node.results[0]] = node
            todo += node.operands
        return list(copied.values())

    def obstacle(self, region: Node) -> str | None:
        """Why the region has no loop nest; asked once for each structure."""
        body = region.graph("body")
        key = graph_key(body)
        if key not in self._verdicts:
            try:
                lower(body, "kernel")
            except UnsupportedError as error:
                self._verdicts[key] = error.message
            else:
                self._verdicts[key] = None
        return self._verdicts[key]


def make_region(nodes: Sequence[Node], results: tuple[Value, ...], last: Node) -> Node:
    """The region of those of `nodes`, in their order, that `results` need. `last` says where it
    comes from."""
    needed = needed_nodes(nodes, results)
    inside = {v for node in needed for v in node.results}
    operands = dict.fromkeys(v for node in needed for v in node.operands if v not in inside)
    body = Graph("body", tuple(Input(v) for v in operands), tuple(needed), results)
    return Node(
        op=op("rw.fused"),
        args=tuple(operands),
        kwargs=(),
        results=results,
        graphs=(("body", body),),
        loc=last.loc,
        seq_nr=last.seq_nr,
        phase=last.phase,
    )
