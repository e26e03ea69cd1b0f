"""Do it: the groups of a plan as `rw.fused` nodes, in an order that runs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

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
from rewright.passes.fuse.groups import Groups
from rewright.passes.fuse.legality import obstacle
from rewright.passes.fuse.plan import FusionPlan, Join
from rewright.passes.fuse.units import is_free


class Regions:
    """The nodes of a graph with its groups as regions, grown in the order in which they run.

    `inside` gives for each value that regions hold the regions' names.
    """

    def __init__(self, graph: Graph, plan: FusionPlan) -> None:
        self.graph, self.plan, self.units = graph, plan, plan.units
        self.nodes: list[Node] = []
        self.inside: dict[str, list[str]] = {}
        self._position = {v: i for i, node in enumerate(graph.nodes) for v in node.results}
        self._placed: set[Value] = set()
        self._verdicts: dict[Hashable, str | None] = {}

    def build(self) -> None:
        groups = self.plan.groups
        for group in groups.schedule():
            members = groups.members[group]
            if group in self.plan.domains:
                self._group(members, self.plan.joins[group])
            else:
                self._place(self.units.nodes[members[0]])
        for node in self.graph.nodes:
            if is_free(node) and any(v in self.graph.returned for v in node.results):
                self._place_free(node)

    def renamed(self) -> Mapping[str, tuple[str, ...]]:
        """Values that only regions hold now, and which."""
        there = {v.name for node in self.nodes for v in node.results}
        return {name: tuple(held) for name, held in self.inside.items() if name not in there}

    # --- placing nodes ------------------------------------------------------------------------

    def _place(self, node: Node) -> None:
        """Put a node behind the views and creations that it reads."""
        for value in node.operands:
            producer = self.graph.producers.get(value)
            if producer is not None and is_free(producer):
                self._place_free(producer)
        self.nodes.append(node)
        for _, body in node.graphs:
            for value in (v for inner in body.nodes for v in inner.results):
                self.inside.setdefault(value.name, []).append(node.name)

    def _place_free(self, node: Node) -> None:
        """A creation that something besides kernels reads is a kernel of its own."""
        if node.results[0] in self._placed:
            return
        self._placed.update(node.results)
        if not is_view(node) and obstacle(node, self.plan.env.target) is None:
            region = make_region((node,), node.results, node)
            node = region if self._obstacle(region) is None else node
        self._place(node)

    # --- groups -------------------------------------------------------------------------------

    def _group(self, members: Sequence[int], joins: Sequence[Join]) -> None:
        """One region of all members; when that has no loop nest, several. What is computed for
        nobody is left out."""
        if not self._leaving(members):
            return
        region = self._region(members)
        if isinstance(region, Node):
            self._place(region)
            return
        last = self.units.nodes[members[-1]]
        if len(members) == 1:
            self.plan.env.log.refuse("fuse", last.name, f"no kernel for it: {region}")
            self._place(last)
            return
        self.plan.env.log.refuse("fuse", last.name, f"no kernel for its whole group: {region}")
        for part in self._parts(members, joins):
            self._group(part, ())

    def _parts(self, members: Sequence[int], joins: Iterable[Join]) -> Iterator[Sequence[int]]:
        """The group grown again, without the joins after which it has no loop nest."""
        number = {unit: i for i, unit in enumerate(members)}
        sources = (self.plan.groups.sources[unit] for unit in members)
        groups = Groups([[number[s] for s in found if s in number] for found in sources])
        for pair in joins:
            a, b = (groups.group_of[number[unit]] for unit in pair)
            if a == b or groups.between(a, b) is not None:
                continue
            both = sorted((*groups.members[a], *groups.members[b]))
            if isinstance(self._region([members[i] for i in both]), Node):
                groups.merge(a, b)
        for group in groups.schedule():
            yield [members[i] for i in groups.members[group]]

    def _region(self, members: Sequence[int]) -> Node | str:
        """The region of some units, or why there is no loop nest for it."""
        nodes, results = [self.units.nodes[unit] for unit in members], self._leaving(members)
        why: str | None = None
        for views_of_outside in (True, False):
            copied = self._copied(nodes, views_of_outside=views_of_outside)
            inner = sorted((*nodes, *copied), key=lambda n: self._position[n.results[0]])
            region = make_region(inner, results, nodes[-1])
            why = self._obstacle(region)
            if why is None:
                return region
        assert why is not None
        return why

    def _leaving(self, members: Sequence[int]) -> tuple[Value, ...]:
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

    def _obstacle(self, region: Node) -> str | None:
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
