"""Shrinking: the least graph that still fails, found by trying smaller ones.

First nodes go, in ever smaller runs (delta debugging: Zeller and Hildebrandt, "Simplifying and
isolating failure-inducing input", 2002): what a node that goes has made becomes an input, and what
nobody reads any more is returned. Then outputs, nodes that can be read past, equal inputs, sizes
and arguments. It ends when nothing smaller fails.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from rewright.bisect.resize import plainer, smaller_sizes
from rewright.ir import (
    Arg,
    Graph,
    Input,
    Node,
    RewrightError,
    TensorType,
    Value,
    fresh_names,
    op,
    sizes_of,
    symbols_of,
)
from rewright.ir.alone import graph_at_hints
from rewright.ir.infer import infer
from rewright.ir.show import show

# Of so few nodes pairs may be tried.
FEW: Final = 16
_SINK: Final = "negative"
Fails = Callable[[Graph], bool]
# The name of the input that takes the place of a value of a graph.
Naming = Callable[[Value, Graph], str]


def shrunk(
    graph: Graph,
    fails: Fails,
    seconds: float,
    *,
    naming: Naming = lambda value, graph: value.name,
    resize: bool = True,
) -> Graph:
    """A graph that fails, and of which nothing smaller that is tried does; or the least found
    within `seconds`. `resize`: whether sizes and arguments may change."""
    return _Shrinking(fails, time.monotonic() + seconds, naming, resize).run(graph)


class _Shrinking:
    """One search. A graph that was tried is not tried again."""

    def __init__(self, fails: Fails, end: float, naming: Naming, resize: bool) -> None:
        self._fails, self._end, self._naming = fails, end, naming
        self._known: dict[str, bool] = {}
        self._steps = [self._ends, self._read_past, self._sunk, _joined_inputs]
        self._steps += [smaller_sizes, plainer] if resize else []

    def run(self, graph: Graph) -> Graph:
        if graph.symbols:
            sized = graph_at_hints(graph)
            graph = sized if self.fails(sized) else graph
        while True:
            before = graph
            graph = self.fewer_nodes(graph)
            for step in self._steps:
                graph = self.simplest(graph, step)
            if graph == before or time.monotonic() > self._end:
                return graph

    def fails(self, graph: Graph) -> bool:
        if time.monotonic() > self._end or not graph.nodes:
            return False
        text = show(graph)
        if text not in self._known:
            self._known[text] = self._fails(graph)
        return self._known[text]

    def fewer_nodes(self, graph: Graph) -> Graph:
        """Without runs of nodes, half of them at first, from the end of the graph on: what is
        below a fault goes before what is above it."""
        run = max(1, len(graph.nodes) // 2)
        while True:
            start = len(graph.nodes)
            while start > 0:
                start = max(0, start - run)
                kept = (*graph.nodes[:start], *graph.nodes[start + run :])
                smaller = part(graph, kept, self._naming)
                if self.fails(smaller):
                    graph = smaller
            if run == 1:
                return graph
            run //= 2

    def simplest(self, graph: Graph, step: Callable[[Graph], Iterable[Graph]]) -> Graph:
        """The graph after as many of these steps as fail."""
        while True:
            found = (g for g in step(graph) if size(g) < size(graph) and self.fails(g))
            simpler = next(found, None)
            if simpler is None:
                return graph
            graph = simpler

    def _ends(self, graph: Graph) -> Iterator[Graph]:
        """With one output or update; with one less."""
        ends = (*graph.outputs, *graph.updates)
        if len(ends) < 2:
            return
        for alone in ends:
            yield self._ending(graph, (alone,))
        for place in range(len(ends)):
            yield self._ending(graph, (*ends[:place], *ends[place + 1 :]))

    def _ending(self, graph: Graph, ends: tuple[object, ...]) -> Graph:
        outputs = tuple(output for output in graph.outputs if output in ends)
        updates = tuple(update for update in graph.updates if update in ends)
        return self._tidy(dataclasses.replace(graph, outputs=outputs, updates=updates))

    def _read_past(self, graph: Graph) -> Iterator[Graph]:
        """With an operand read in place of a result, or another value that is there by then."""
        known = [i.value for i in graph.inputs]
        known += [v for node in graph.nodes for v in node.results]
        for node in reversed(graph.nodes if len(graph.nodes) <= FEW else ()):
            del known[len(known) - len(node.results) :]
            for value in dict.fromkeys((*node.operands, *reversed(known))):
                if node.results and value.type == node.results[0].type:
                    try:
                        yield self._tidy(graph.substitute({node.results[0]: value}))
                    except RewrightError:
                        continue

    def _sunk(self, graph: Graph) -> Iterator[Graph]:
        """With the negative of a value in place of all that is made of it: passes treat what is
        read otherwise than what is returned."""
        fresh = fresh_names(v.name for v in graph.values)(_SINK)
        for place, node in enumerate(graph.nodes):
            for value in node.results:
                if not _is_float(value) or not graph.readers.get(value):
                    continue
                below = {value}
                for reader in graph.nodes[place + 1 :]:
                    if not below.isdisjoint(reader.operands):
                        below.update(reader.results)
                kept = [n for n in graph.nodes if n is node or below.isdisjoint(n.results)]
                sink = Node(op("aten.neg.default"), (value,), (), ())
                result = Value(fresh, infer(sink)[0])
                sink = dataclasses.replace(sink, results=(result,))
                yield part(graph, (*kept, sink), self._naming)

    def _tidy(self, graph: Graph) -> Graph:
        """Without nodes that nobody needs."""
        needed = {v for _, v in graph.updates} | {v for v in graph.outputs if isinstance(v, Value)}
        kept = []
        for node in reversed(graph.nodes):
            if not needed.isdisjoint(node.results):
                kept.append(node)
                needed.update(node.operands)
        return part(graph, kept[::-1], self._naming)


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype.is_floating_point


def size(graph: Graph) -> tuple[int, int, int, int, int]:
    """What there is of a graph, the heaviest first."""
    numbers = sum(s for v in graph.values for s in sizes_of(v.type) if isinstance(s, int))
    ends = len(graph.outputs) + len(graph.updates)
    return len(graph.nodes), ends, len(graph.inputs), numbers, len(show(graph))


def part(
    graph: Graph,
    nodes: Iterable[Node],
    naming: Naming = lambda value, graph: value.name,
) -> Graph:
    """The graph of some of the nodes, in their order. What they read of others are inputs; they
    give what the graph gave of theirs, and what none of them reads."""
    kept = tuple(nodes)
    made = {v for node in kept for v in node.results}
    read = dict.fromkeys(v for node in kept for v in node.operands if v not in made)
    updates = tuple((target, v) for target, v in graph.updates if v in made)
    given = dict.fromkeys(v for v in graph.outputs if isinstance(v, Value) and v in made)
    used = {v for node in kept for v in node.operands} | {v for _, v in updates}
    unread = (n.results[0] for n in kept if n.results and used.isdisjoint(n.results))
    outputs = tuple(given | dict.fromkeys(v for v in unread if not given.keys() & {v}))
    inputs, renamed = _inputs(graph, read, updates, naming)
    made_of = Graph(graph.name, inputs, kept, outputs, updates).substitute(renamed)
    return _with_sizes(made_of, graph)


def _inputs(
    graph: Graph,
    read: dict[Value, None],
    updates: tuple[tuple[Value, Value], ...],
    naming: Naming,
) -> tuple[tuple[Input, ...], dict[Value, Arg]]:
    """Inputs of a part, and the values that they take the place of."""
    written = {target for target, _ in updates}
    own = [i for i in graph.inputs if i.value in read or i.value in written]
    inputs = [dataclasses.replace(i, mutable=i.value in written) for i in own]
    renamed: dict[Value, Arg] = {}
    known = graph
    for value in read:
        if value not in (i.value for i in own):
            cut = Value(naming(value, known), value.type)
            inputs.append(Input(cut))
            known = dataclasses.replace(known, inputs=(*known.inputs, Input(cut)))
            if cut != value:
                renamed[value] = cut
    return tuple(inputs), renamed


def _with_sizes(made: Graph, graph: Graph) -> Graph:
    """With those inputs that a symbol is known from and that nobody reads."""
    shown = set(symbols_of(s for i in made.inputs for s in sizes_of(i.value.type)))
    missing = set(made.symbols) - shown
    more = []
    for input in graph.inputs if missing else ():
        told = missing & set(symbols_of(sizes_of(input.value.type)))
        if told:
            more.append(dataclasses.replace(input, mutable=False))
            missing -= told
    return dataclasses.replace(made, inputs=(*made.inputs, *more))


def _joined_inputs(graph: Graph) -> Iterator[Graph]:
    """With one input in place of two."""
    written = {target for target, _ in graph.updates}
    for place, input in enumerate(graph.inputs):
        for other in graph.inputs[:place]:
            if input.value.type == other.value.type and input.value not in written:
                inputs = (*graph.inputs[:place], *graph.inputs[place + 1 :])
                joined = graph.substitute({input.value: other.value})
                yield dataclasses.replace(joined, inputs=inputs)
