"""Groups of nodes that become regions, kept convex while they grow.

A group is convex when no path leaves it and comes back: otherwise the region would have to run
before something it reads. Sets of nodes are bit masks, `before[g]` holds all nodes that must run
before group `g`, with every touched group counted whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from rewright.ir import Effect, Graph, effect_of


class Groups:
    """A partition of a graph's nodes; every node starts alone, groups only grow."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        self.group_of = list(range(len(graph.nodes)))
        self.members = [1 << i for i in range(len(graph.nodes))]
        self.before = [0] * len(graph.nodes)
        self._sources = _dependencies(graph)

    def visit(self, node: int) -> None:
        """Learn what must run before `node`; nodes are visited in order, before they are merged."""
        before = 0
        for source in self._sources[node]:
            group = self.group_of[source]
            before |= self.members[group] | self.before[group]
        self.before[node] = before

    def between(self, a: int, b: int, visited: int) -> str | None:
        """The name of a node on a path from one group through outside to the other, or None.

        `visited` is the number of nodes visited so far.
        """
        both = self.members[a] | self.members[b]
        for first, last in ((a, b), (b, a)):
            outside = self.before[last] & ~both
            if not outside:
                continue
            start = _lowest(self.members[first])
            for node in bits(outside >> start << start):
                if node < visited and self.before[self.group_of[node]] & self.members[first]:
                    return self.nodes[node].name
        return None

    def merge(self, a: int, b: int, visited: int) -> int:
        """One group of both; returns its number. `between` must have found nothing."""
        keep, gone = (a, b) if a < b else (b, a)
        both = self.members[a] | self.members[b]
        before = (self.before[a] | self.before[b]) & ~both
        self.members[keep], self.before[keep] = both, before
        self.members[gone] = 0
        for node in bits(both):
            self.group_of[node] = keep
        new = both | before
        for node in range(_lowest(both), visited):
            group = self.group_of[node]
            if group != keep and self.before[group] & both:
                self.before[group] |= new
        return keep

    def nodes_of(self, group: int) -> list[int]:
        return list(bits(self.members[group]))


def bits(mask: int) -> Iterator[int]:
    """Positions of the set bits, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def _dependencies(graph: Graph) -> list[list[int]]:
    """For each node the nodes it must follow: producers, and the last node of its effect."""
    number = {value: i for i, node in enumerate(graph.nodes) for value in node.results}
    last: dict[Effect, int] = {}
    found: list[list[int]] = []
    for i, node in enumerate(graph.nodes):
        sources = {number[v] for v in node.operands if v in number}
        effect = effect_of(node)
        if effect is not Effect.NONE:
            if effect in last:
                sources.add(last[effect])
            last[effect] = i
        found.append(sorted(sources))
    return found


def schedule(graph: Graph, groups: Groups) -> list[int]:
    """Groups in an order in which each runs after all it reads, as near to the old as possible."""
    import heapq

    owners = sorted(set(groups.group_of))
    place = {g: groups.members[g].bit_length() for g in owners}
    readers: dict[int, set[int]] = {g: set() for g in owners}
    waiting = dict.fromkeys(owners, 0)
    for node, sources in enumerate(_dependencies(graph)):
        target = groups.group_of[node]
        for source in {groups.group_of[s] for s in sources} - {target}:
            if target not in readers[source]:
                readers[source].add(target)
                waiting[target] += 1
    ready = [(place[g], g) for g in owners if waiting[g] == 0]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        _, group = heapq.heappop(ready)
        order.append(group)
        for reader in sorted(readers[group]):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, (place[reader], reader))
    return order
