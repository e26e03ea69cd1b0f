"""Groups of items that become regions, kept in an order that can run while they grow.

Two groups may become one when no path leads from one through others to the other: the region would
have to run before something that it reads. Groups keep places in a topological order, so that only
what stands between two of them is searched, and a merge moves only what it must (Pearce and Kelly,
"A dynamic topological sort algorithm for directed acyclic graphs", 2007).
"""

from __future__ import annotations

from collections.abc import Sequence


class Groups:
    """A partition of items that stand in an order that can run; every item starts alone.

    `sources[i]` are the items that must run before item `i`.
    """

    def __init__(self, sources: Sequence[Sequence[int]]) -> None:
        self.sources = sources
        self.group_of = list(range(len(sources)))
        self.members = [[i] for i in range(len(sources))]
        self._before = [set(found) for found in sources]
        self._after: list[set[int]] = [set() for _ in sources]
        for item, found in enumerate(sources):
            for source in found:
                self._after[source].add(item)
        self._place = list(range(len(sources)))

    def between(self, a: int, b: int) -> int | None:
        """An item on a path from one group through others to the other, or None."""
        first, last = self._ordered(a, b)
        for group in self._reached(first, last, self._after):
            if last in self._after[group]:
                return self.members[group][0]
        return None

    def distance(self, a: int, b: int) -> int:
        """Places from one group to the other."""
        return abs(self._place[a] - self._place[b])

    def merge(self, a: int, b: int) -> int:
        """One group of both; returns its number. `between` must have found nothing."""
        first, last = self._ordered(a, b)
        self._make_neighbours(first, last)
        keep, gone = (a, b) if len(self.members[a]) >= len(self.members[b]) else (b, a)
        for item in self.members[gone]:
            self.group_of[item] = keep
        self.members[keep] = sorted(self.members[keep] + self.members[gone])
        self.members[gone] = []
        self._rewire(keep, gone, self._before, self._after)
        self._rewire(keep, gone, self._after, self._before)
        return keep

    def schedule(self) -> list[int]:
        """Groups in an order in which each runs after all it reads, each where its last item was
        if that can be."""
        import heapq

        owners = sorted(set(self.group_of))
        waiting = {g: len(self._before[g]) for g in owners}
        ready = [(self.members[g][-1], g) for g in owners if waiting[g] == 0]
        heapq.heapify(ready)
        order: list[int] = []
        while ready:
            _, group = heapq.heappop(ready)
            order.append(group)
            for reader in self._after[group]:
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    heapq.heappush(ready, (self.members[reader][-1], reader))
        return order

    def _ordered(self, a: int, b: int) -> tuple[int, int]:
        return (a, b) if self._place[a] < self._place[b] else (b, a)

    def _reached(self, start: int, end: int, edges: Sequence[set[int]]) -> list[int]:
        """Groups that stand strictly between two and are reached from `start` along `edges`."""
        low, high = sorted((self._place[start], self._place[end]))
        found: dict[int, None] = {}
        todo = [start]
        while todo:
            for group in edges[todo.pop()]:
                if group not in found and low < self._place[group] < high:
                    found[group] = None
                    todo.append(group)
        return list(found)

    def _make_neighbours(self, first: int, last: int) -> None:
        """Reorder what stands between two groups: what `last` needs, both, what needs `first`."""
        needed = self._reached(last, first, self._before)
        needing = self._reached(first, last, self._after)
        order = [*self._by_place(needed), first, last, *self._by_place(needing)]
        for group, place in zip(order, sorted(self._place[g] for g in order), strict=True):
            self._place[group] = place

    def _by_place(self, groups: Sequence[int]) -> list[int]:
        return sorted(groups, key=self._place.__getitem__)

    @staticmethod
    def _rewire(keep: int, gone: int, edges: list[set[int]], back: list[set[int]]) -> None:
        for group in edges[gone]:
            back[group].discard(gone)
            if group != keep:
                back[group].add(keep)
        edges[keep] |= edges[gone]
        edges[keep] -= {keep, gone}
        edges[gone] = set()
