"""Parts of a graph that is too large to read: one node, a neighbourhood, who reads a value."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from rewright.ir import Graph, Input, Node, OptionError, Value


@dataclass(frozen=True)
class Where:
    """A value by its name, and how many steps to go from it (None: as far as it goes)."""

    name: str
    steps: int | None

    @staticmethod
    def parse(text: str, option: str) -> Where:
        """Read `NAME`, `NAME:3` or `NAME:all`. Raises OptionError."""
        name, _, steps = text.rpartition(":")
        if not name:
            return Where(text, 1)
        if steps == "all":
            return Where(name, None)
        if not re.fullmatch(r"[0-9]{1,9}", steps):
            raise OptionError(
                f"{option} takes NAME:STEPS, where STEPS is a number or all, not '{text}'"
            )
        return Where(name, int(steps))


def only(graph: Graph, name: str) -> Graph:
    """The node that makes a value, with what it reads as inputs."""
    value, node = found_in(graph, name)
    if node is None:
        return dataclasses.replace(graph, inputs=(Input(value),), nodes=(), outputs=(value,))
    return _part(graph, [node])


def around(graph: Graph, where: Where) -> Graph:
    """The nodes that are at most so many steps away from a value, up or down."""
    return _part(graph, _spread(graph, *_start(graph, where), both=True))


def uses(graph: Graph, where: Where) -> Graph:
    """The node that makes a value, who reads it, and so on for so many steps."""
    return _part(graph, _spread(graph, *_start(graph, where), both=False))


def found_in(graph: Graph, name: str) -> tuple[Value, Node | None]:
    """A value and the node that makes it: the kernel, for a value inside of one; None for an input.
    Raises CheckError with the nearest name."""
    wanted = name.removeprefix("%")
    if all(value.name != wanted for value in graph.values):
        for node in graph.nodes:
            inside = (v.name for _, body in node.graphs for n in body.nodes for v in n.results)
            if wanted in inside and node.results:
                return node.results[0], node
    value = graph.value(wanted)
    return value, graph.producers.get(value)


def _start(graph: Graph, where: Where) -> tuple[list[Node], int | None]:
    """The node to start from, and the steps to go; for an input, who reads it, and one less."""
    value, node = found_in(graph, where.name)
    if node is not None:
        return [node], where.steps
    readers = list(graph.readers.get(value, ())) if where.steps != 0 else []
    return readers, None if where.steps is None else max(where.steps - 1, 0)


def _spread(graph: Graph, start: Iterable[Node], steps: int | None, *, both: bool) -> list[Node]:
    """The nodes that are at most so many steps from some, those included, in the graph's order."""
    edge = list(start)
    seen = set(map(id, edge))
    while edge and steps != 0:
        steps = None if steps is None else steps - 1
        met = {id(n): n for node in edge for n in _next_to(graph, node, both)}
        edge = [n for key, n in met.items() if key not in seen]
        seen.update(map(id, edge))
    return [node for node in graph.nodes if id(node) in seen]


def _next_to(graph: Graph, node: Node, both: bool) -> Iterator[Node]:
    for value in node.results:
        yield from graph.readers.get(value, ())
    if both:
        for value in node.operands:
            if value in graph.producers:
                yield graph.producers[value]


def _part(graph: Graph, nodes: Iterable[Node]) -> Graph:
    """A graph of some of the nodes: what they read from others comes in, what others read goes
    out."""
    kept = tuple(nodes)
    made = {value for node in kept for value in node.results}
    read = dict.fromkeys(v for node in kept for v in node.operands if v not in made)
    given = {i.value: i for i in graph.inputs}
    inputs = tuple(given.get(value, Input(value)) for value in read)
    return dataclasses.replace(
        graph, inputs=inputs, nodes=kept, outputs=tuple(_leaving(graph, kept)), updates=()
    )


def _leaving(graph: Graph, kept: Collection[Node]) -> Iterator[Value]:
    """What the rest of the graph, or its caller, reads of some nodes; or nobody at all."""
    inside = set(map(id, kept))
    for node in kept:
        for value in node.results:
            readers = graph.readers.get(value, ())
            if not readers or value in graph.returned or any(id(n) not in inside for n in readers):
                yield value
