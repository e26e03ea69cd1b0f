"""The fuse pass: group nodes while it is legal and saves time, then make the groups regions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rewright.ir import Graph, Node, Step, UnsupportedError, Value, graph_key
from rewright.ir.loops import lower
from rewright.passes.base import Env, Pass
from rewright.passes.fuse.groups import Groups, schedule
from rewright.passes.fuse.legality import Domain, domain_of, obstacle
from rewright.passes.fuse.profit import saved_seconds
from rewright.passes.fuse.region import copied_nodes, is_free, is_view, make_region


@dataclass(frozen=True)
class Fuse(Pass, name="fuse", takes="aten", gives="fused"):
    """Put nodes that share data into one kernel.

    before:
        %a = aten.add.Tensor(%x, %y) : f32[4, 8]
        %b = aten.relu.default(%a) : f32[4, 8]
    after:
        %b = rw.fused(%x, %y) body(%x: f32[4, 8], %y: f32[4, 8]) {
          %a = aten.add.Tensor(%x, %y) : f32[4, 8]
          %b = aten.relu.default(%a) : f32[4, 8]
          return %b
        } : f32[4, 8]

    `max_ops` bounds the nodes of a region (0: no regions, everything runs as ATen); `horizontal`
    also joins independent nodes that read the same value. Refuses: nodes without a loop form,
    groups whose merging would make a cycle, iteration spaces that differ.
    """

    max_ops: int = 64
    horizontal: bool = True

    def run(self, graph: Graph, env: Env) -> Graph:
        if self.max_ops == 0:
            return graph
        plan = _Plan(graph, env, self)
        plan.grow_vertically()
        if self.horizontal:
            plan.grow_horizontally()
        nodes = list(_emit(graph, plan, env))
        fused = dataclasses.replace(graph, nodes=tuple(nodes))
        fused = _settle_free_nodes(fused)
        return fused.with_step(Step(str(self)))


class _Plan:
    """Which nodes go together, as it grows."""

    def __init__(self, graph: Graph, env: Env, options: Fuse) -> None:
        self.graph, self.env, self.options = graph, env, options
        self.groups = Groups(graph)
        self.domains: dict[int, Domain] = {}
        self.number = {value: i for i, node in enumerate(graph.nodes) for value in node.results}

    def grow_vertically(self) -> None:
        """Join each node with the groups that make what it reads, most bytes first."""
        for i, node in enumerate(self.graph.nodes):
            self.groups.visit(i)
            if is_free(node) or not self._admit(i, node):
                continue
            sources = sorted(self._sources(node), key=lambda v: (-v.tensor.nbytes_hint, v.name))
            for value in sources:
                self._try(self.number[value], i, value, i + 1)

    def grow_horizontally(self) -> None:
        """Join independent groups that read the same value."""
        total = len(self.graph.nodes)
        shared: dict[Value, list[int]] = {}
        for i in sorted(self.domains):
            for node in self.groups.nodes_of(i):
                for value in self.graph.nodes[node].operands:
                    shared.setdefault(self._root(value), []).append(node)
        for value, nodes in shared.items():
            for first, second in itertools.pairwise(nodes):
                self._try(first, second, value, total)

    def _admit(self, i: int, node: Node) -> bool:
        why = obstacle(node)
        if why is not None:
            self.env.log.refuse("fuse", node.name, why)
            return False
        self.domains[i] = domain_of(node)
        return True

    def _sources(self, node: Node) -> list[Value]:
        """Values made by groups that the node reads, through views."""
        roots = dict.fromkeys(self._root(v) for v in node.operands)
        return [v for v in roots if v in self.number and self._group(v) in self.domains]

    def _root(self, value: Value) -> Value:
        node = self.graph.producers.get(value)
        while node is not None and is_view(node):
            value = node.operands[0]
            node = self.graph.producers.get(value)
        return value

    def _group(self, value: Value) -> int:
        return self.groups.group_of[self.number[value]]

    def _try(self, first: int, second: int, value: Value, visited: int) -> None:
        a, b = self.groups.group_of[first], self.groups.group_of[second]
        if a == b:
            return
        subject = self.graph.nodes[second].name
        if (why := self._obstacle(a, b, visited)) is not None:
            self.env.log.refuse("fuse", subject, f"stays apart from %{value.name}: {why}")
            return
        gain = saved_seconds(self.env.target, [value], [])
        if gain <= 0:
            self.env.log.refuse("fuse", subject, f"no gain in joining %{value.name}")
            return
        domain = self.domains.pop(a).join(self.domains.pop(b))
        assert domain is not None
        self.domains[self.groups.merge(a, b, visited)] = domain
        size = _bytes(value.tensor.nbytes_hint)
        self.env.log.decide("fuse", subject, f"joins %{value.name}, saving a read of {size}")

    def _obstacle(self, a: int, b: int, visited: int) -> str | None:
        members = self.groups.members
        if (members[a] | members[b]).bit_count() > self.options.max_ops:
            return f"more than {self.options.max_ops} nodes in one kernel (see fuse{{max-ops}})"
        if self.domains[a].join(self.domains[b]) is None:
            return "their iteration spaces differ"
        devices = {v.tensor.device for g in (a, b) for v in self._results(g)}
        if len(devices) > 1:
            return "they are on different devices"
        between = self.groups.between(a, b, visited)
        return f"%{between} must run between them" if between is not None else None

    def _results(self, group: int) -> Iterator[Value]:
        for node in self.groups.nodes_of(group):
            yield from self.graph.nodes[node].results


def _bytes(size: int) -> str:
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} B"


# --- regions ------------------------------------------------------------------------------------


def _emit(graph: Graph, plan: _Plan, env: Env) -> Iterator[Node]:
    """The new node list: each group at its place in a valid order."""
    verdicts: dict[object, str | None] = {}
    for group in schedule(graph, plan.groups):
        members = [graph.nodes[i] for i in plan.groups.nodes_of(group)]
        if group in plan.domains:
            yield from _regions(graph, members, env, verdicts)
        else:
            yield from members


def _regions(
    graph: Graph, members: Sequence[Node], env: Env, verdicts: dict[object, str | None]
) -> Iterator[Node]:
    """One region of all members; when that has no loop nest, one a node; else the nodes as ATen."""
    why: str | None = None
    for views_of_outside in (True, False):
        copied = copied_nodes(graph, members, views_of_outside=views_of_outside)
        region = make_region(graph, members, copied)
        if not region.results:
            return
        why = _lowering_obstacle(region, verdicts)
        if why is None:
            yield region
            return
    env.log.refuse("fuse", members[-1].name, f"no kernel for its group: {why}")
    if len(members) == 1:
        yield from members
        return
    for node in members:
        yield from _regions(graph, [node], env, verdicts)


def _lowering_obstacle(region: Node, verdicts: dict[object, str | None]) -> str | None:
    """Why the region has no loop nest; asked once for each structure."""
    body = region.graph("body")
    key = graph_key(body)
    if key not in verdicts:
        try:
            lower(body, "probe")
        except UnsupportedError as error:
            verdicts[key] = error.message
        else:
            verdicts[key] = None
    return verdicts[key]


def _settle_free_nodes(graph: Graph) -> Graph:
    """Views and creations whose every reader took a copy are gone; creations that remain (an extern
    call or the caller reads them) become regions of their own."""
    read = set(graph.returned)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if is_free(node) and not any(v in read for v in node.results):
            continue
        read.update(node.operands)
        kept.append(node)
    settled = graph.with_nodes(reversed(kept))
    return settled.with_nodes(
        make_region(settled, [n]) if is_free(n) and not is_view(n) and obstacle(n) is None else n
        for n in settled.nodes
    )
