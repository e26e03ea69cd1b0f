"""Do it: the groups of a plan as `rw.fused` nodes, in an order that runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rewright.ir import Graph, Node, Value
from rewright.ir.loops import is_view
from rewright.passes.fuse.groups import Groups
from rewright.passes.fuse.legality import obstacle
from rewright.passes.fuse.make import make_region
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
        self._maker = plan.maker
        self._placed: set[Value] = set()

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
            node = region if self._maker.obstacle(region) is None else node
        self._place(node)

    # --- groups -------------------------------------------------------------------------------

    def _group(self, members: Sequence[int], joins: Sequence[Join]) -> None:
        """One region of all members; when that has no loop nest, several. What is computed for
        nobody is left out."""
        if not self._maker.leaving(members):
            return
        region = self._maker.region(members)
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
            if isinstance(self._maker.region([members[i] for i in both]), Node):
                groups.merge(a, b)
        for group in groups.schedule():
            yield [members[i] for i in groups.members[group]]
