"""A graph while it is rewritten: who makes and who reads each value is kept up to date, so that a
rewrite costs what it touches.

Nodes keep an order that can run all the time (as in Pearce and Kelly, 2007, only what a change
puts in the wrong place moves), so that a search for what depends on what stays short.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from rewright.ir import (
    Effect,
    Graph,
    Node,
    Value,
    effects_of,
    fresh_names,
    late_sizes,
    map_values,
    may_drop,
    symbols_read,
    values_in,
)


class Work:
    """Nodes by number, each with a place: what a node reads has an earlier one. New nodes come
    right after what they replace, and push back only what would stand before them."""

    def __init__(self, graph: Graph) -> None:
        self.source = graph
        self.nodes: dict[int, Node] = dict(enumerate(graph.nodes))
        self.place: dict[int, tuple[int, int]] = {i: (i, 0) for i in self.nodes}
        self._numbers = itertools.count(len(self.nodes))
        self._steps = itertools.count(1)
        self._maker: dict[str, int] = {}
        self._readers: dict[str, dict[int, None]] = {}
        self._leaving: dict[str, int] = {}
        self._values: dict[Value, Value] = {}
        self._fresh = fresh_names(v.name for v in graph.values)
        for number, node in self.nodes.items():
            self._enter(number, node)
        for value in (*values_in(graph.outputs), *(v for _, v in graph.updates)):
            self._leaving[value.name] = self._leaving.get(value.name, 0) + 1
        self._before, self._after = self._other_edges()

    def _other_edges(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """Orders that operands do not show: nodes of one effect keep theirs, and a size that is
        known late is read after what makes it. Rules touch no node with an effect."""
        last: dict[Effect, int] = {}
        late = {name: self._maker[n.name] for name, n in late_sizes(self.source).items()}
        before: dict[int, list[int]] = {}
        for number, node in self.nodes.items():
            found = [last[e] for e in effects_of(node) if e in last]
            found += [late[s.name] for s in symbols_read(node) if s.name in late] if late else []
            last |= dict.fromkeys(effects_of(node), number)
            if found:
                before[number] = [n for n in found if n != number]
        after: dict[int, list[int]] = {}
        for number, found in before.items():
            for other in found:
                after.setdefault(other, []).append(number)
        return before, after

    # --- questions ----------------------------------------------------------------------------

    def producer(self, value: Value) -> Node | None:
        number = self._maker.get(value.name)
        return None if number is None else self.nodes[number]

    def number(self, value: Value) -> int | None:
        """The number of the node that makes a value."""
        return self._maker.get(value.name)

    def readers(self, value: Value) -> Collection[int]:
        """Numbers of the nodes that read a value, in the order in which they began to."""
        return self._readers.get(value.name, ())

    def leaves(self, value: Value) -> bool:
        """The graph returns the value."""
        return self._leaving.get(value.name, 0) > 0

    def fresh(self, stem: str) -> str:
        return self._fresh(stem)

    def depend(self, values: Iterable[Value], on: Iterable[int]) -> bool:
        """Whether any of the values can only be made after any of these nodes."""
        wanted, seen = set(on), set[int]()
        floor = min(self.place[n] for n in wanted)
        todo = [n for v in values if (n := self._maker.get(v.name)) is not None]
        while todo:
            number = todo.pop()
            if number in wanted:
                return True
            if number in seen or self.place[number] < floor:
                continue
            seen.add(number)
            makers = (self._maker.get(v.name) for v in self.nodes[number].operands)
            todo += (n for n in makers if n is not None)
            todo += self._before.get(number, ())
        return False

    # --- changes --------------------------------------------------------------------------------

    def replace(
        self, roots: Sequence[int], new: Sequence[Node], values: Mapping[Value, Value]
    ) -> tuple[list[int], list[str]]:
        """Put `new` in the place of `roots`, and read the values of `values` instead of its keys.

        Returns the numbers of the new nodes, and the names that are gone: of the roots, and of what
        nothing reads any more.
        """
        at = max(self.place[n] for n in roots)[0]
        below = [v for n in roots for v in self.nodes[n].operands]
        gone = [v.name for n in roots for v in self.nodes[n].results]
        for number in roots:
            self._leave(number)
        numbers = [self._add(node, at) for node in new]
        for old, value in values.items():
            self._read_instead(old, value)
        for number in numbers:
            self._push_readers_back(number)
        kept = {v.name for node in new for v in node.results}
        return numbers, [n for n in gone if n not in kept] + self._drop_unread(below)

    def _add(self, node: Node, at: int) -> int:
        number = next(self._numbers)
        self.nodes[number] = node
        self.place[number] = (at, next(self._steps))
        self._enter(number, node)
        return number

    def _push_readers_back(self, number: int) -> None:
        todo = [number]
        while todo:
            number = todo.pop()
            for reader in self._followers(number):
                if self.place[reader] < self.place[number]:
                    self.place[reader] = (self.place[number][0], next(self._steps))
                    todo.append(reader)

    def _followers(self, number: int) -> Iterator[int]:
        for value in self.nodes[number].results:
            yield from self.readers(value)
        yield from self._after.get(number, ())

    def _read_instead(self, old: Value, value: Value) -> None:
        for number in list(self.readers(old)):
            node = self.nodes[number]
            self._leave(number)
            self.nodes[number] = node.replace({old: value})
            self._enter(number, self.nodes[number])
        self._leaving[value.name] = self._leaving.get(value.name, 0) + self._leaving.pop(
            old.name, 0
        )
        self._values[old] = value

    def _drop_unread(self, values: Iterable[Value]) -> list[str]:
        gone: list[str] = []
        todo = list(values)
        while todo:
            number = self._maker.get(todo.pop().name)
            if number is None or not may_drop(self.nodes[number]):
                continue
            node = self.nodes[number]
            if any(self._readers.get(v.name) or self.leaves(v) for v in node.results):
                continue
            self._leave(number)
            gone += (v.name for v in node.results)
            todo += node.operands
        return gone

    def _enter(self, number: int, node: Node) -> None:
        for value in node.results:
            self._maker[value.name] = number
        for value in node.operands:
            self._readers.setdefault(value.name, {})[number] = None

    def _leave(self, number: int) -> None:
        node = self.nodes.pop(number)
        for value in node.operands:
            self._readers[value.name].pop(number, None)
        for value in node.results:
            if self._maker.get(value.name) == number:
                del self._maker[value.name]

    # --- the end ----------------------------------------------------------------------------------

    def graph(self) -> Graph:
        """The graph as it is now."""
        final = {old: self._final(new) for old, new in self._values.items()}
        order = sorted(self.nodes, key=self.place.__getitem__)
        return dataclasses.replace(
            self.source,
            nodes=tuple(self.nodes[n] for n in order),
            outputs=tuple(map_values(a, final) for a in self.source.outputs),
            updates=tuple((t, final.get(v, v)) for t, v in self.source.updates),
        )

    def _final(self, value: Value) -> Value:
        while value in self._values:
            value = self._values[value]
        return value
