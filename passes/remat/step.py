"""A training step as one graph, and as its two halves again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rewright.ir import (
    Arg,
    Dim,
    Graph,
    Input,
    Node,
    ScalarType,
    Value,
    fresh_names,
    is_call,
    map_values,
    values_in,
)
from rewright.ir.symbol_sources import symbol_sources

from .graphs import Boundary, Scheduled
from .problem import Order


@dataclass(frozen=True)
class Halves:
    """Forward and backward of a step. The forward returns `returned` outputs to its caller, then
    the tensors in `saved`, then numbers that it handed over before, then `sizes`, which are inputs
    of its. The backward gets numbers and sizes first, then `saved`, then gradients (its inputs with
    the role "tangent"). `workspace` are the bytes that calls hold while they run, by name;
    `origins` are the names of the joined step's calls that calls are runs of."""

    forward: Graph
    backward: Graph
    returned: int
    saved: tuple[Value, ...]
    sizes: tuple[Value, ...]
    workspace: Mapping[str, int]
    origins: Mapping[str, str]


@dataclass(frozen=True)
class TrainingStep:
    """Forward and backward as they were partitioned, both at the fused level. `handed` says for
    each input of the backward that is no tangent which output of the forward it is; `pinned` are
    those outputs that the user wants saved."""

    forward: Graph
    backward: Graph
    returned: int
    handed: Mapping[int, int]
    pinned: frozenset[int] = frozenset()

    @cached_property
    def joined(self) -> Graph:
        """Both as one graph: inputs of the forward and tangents in, what the forward returns and
        the gradients out."""
        return self._joining[0]

    @cached_property
    def names(self) -> Mapping[str, str]:
        """What values of the backward are called in the joined step."""
        nodes = self.backward.nodes
        made = (value for node in nodes for value in node.results)
        pairs = ((value.name, self._joining[1][value]) for value in made)
        return {name: now.name for name, now in pairs if isinstance(now, Value)}

    @cached_property
    def _joining(self) -> tuple[Graph, Mapping[Value, Arg]]:
        """The joined step, and what stands in it for each value of the backward."""
        fresh = fresh_names(v.name for v in self.forward.values)
        names: dict[Value, Arg] = {}
        for place, given in enumerate(self.backward.inputs):
            handed = self.handed.get(place)
            names[given.value] = (
                _renamed(given.value, fresh(given.value.name))
                if handed is None
                else self.forward.outputs[handed]
            )
        nodes = []
        for node in self.backward.nodes:
            results = tuple(_renamed(v, fresh(v.name)) for v in node.results)
            nodes.append(dataclasses.replace(node.replace(names), results=results))
            names |= dict(zip(node.results, results, strict=True))
        outputs = tuple(map_values(a, names) for a in self.backward.outputs)
        joined = Graph(
            "step",
            (*self.forward.inputs, *(Input(v, "tangent") for v in self._tangents(names))),
            (*self.forward.nodes, *nodes),
            (*self.forward.outputs[: self.returned], *outputs),
            self.forward.updates,
        )
        return joined, names

    def _tangents(self, names: Mapping[Value, Arg]) -> Iterator[Value]:
        for place, given in enumerate(self.backward.inputs):
            value = names[given.value]
            if place not in self.handed and isinstance(value, Value):
                yield value

    @cached_property
    def boundary(self) -> Boundary:
        tangents = (i.value for i in self.joined.inputs if i.role == "tangent")
        written = (v for _, v in self.forward.updates)
        returned = values_in(self.forward.outputs[: self.returned])
        return Boundary((*returned, *written), frozenset(tangents))

    def scheduled(
        self, seconds: Mapping[str, float], workspace: Mapping[str, int] | None = None
    ) -> Scheduled:
        """`seconds` of each call of the joined graph, and bytes of workspace, by node name."""
        once = values_in(tuple(self.forward.outputs[i] for i in sorted(self.pinned)))
        return Scheduled(self.joined, seconds, self.boundary, workspace, tuple(once))

    def halves(self, scheduled: Scheduled, order: Order) -> Halves:
        """The two graphs of a schedule."""
        graph, split, origins = scheduled.rescheduled(order)
        first, rest = graph.nodes[:split], graph.nodes[split:]
        late = _Late(graph, first, rest, graph.outputs[self.returned :])
        numbers = [i for i, v in enumerate(self.backward.inputs) if _is_number(v.value)]
        saved = tuple(late.saved)
        backward = Graph(
            self.backward.name,
            (
                *(self.backward.inputs[i] for i in numbers),
                *(Input(value, "saved") for value in saved),
                *(i for i in graph.inputs if i.role == "tangent"),
            ),
            (*late.views.values(), *rest),
            graph.outputs[self.returned :],
        )
        sizes = tuple(self._missing(backward))
        backward = dataclasses.replace(
            backward, inputs=(*(Input(v, "saved") for v in sizes), *backward.inputs)
        )
        handed = (*saved, *(self.forward.outputs[self.handed[i]] for i in numbers), *sizes)
        outputs = (*graph.outputs[: self.returned], *handed)
        forward = Graph(
            self.forward.name,
            graph.inputs[: len(self.forward.inputs)],
            tuple(_needed(first, [*outputs, *(v for _, v in graph.updates)])),
            outputs,
            graph.updates,
        )
        known = scheduled.workspace
        workspace = {name: known[of] for name, of in origins.items() if of in known}
        return Halves(forward, backward, self.returned, saved, sizes, workspace, origins)

    def _missing(self, backward: Graph) -> Iterator[Value]:
        """The forward's own inputs that are sizes which nothing given to the backward shows."""
        shown = {i.value for i in backward.inputs}
        known = symbol_sources(backward)
        for input in self.forward.inputs:
            size = input.value.type.dim if isinstance(input.value.type, ScalarType) else None
            source = known.get(size.text) if isinstance(size, Dim) and size.is_symbol else None
            if source is not None and source.value not in shown:
                yield input.value


class _Late:
    """What the nodes after the boundary read of what is there before it: tensors, which are saved,
    and views and constants, which are made again."""

    def __init__(
        self, graph: Graph, first: Sequence[Node], rest: Sequence[Node], outputs: Sequence[Arg]
    ) -> None:
        self.makers = {value: node for node in first for value in node.results}
        self.given = {i.value for i in graph.inputs if i.role != "tangent"}
        self.saved: dict[Value, None] = {}
        self.views: dict[str, Node] = {}  # by name
        for node in rest:
            self.take(node.operands)
        self.take(values_in(outputs))

    def take(self, values: Iterable[Value]) -> None:
        for value in values:
            maker = self.makers.get(value)
            if maker is not None and not is_call(maker):
                self.take(maker.operands)
                self.views[maker.name] = maker
            elif (maker is not None or value in self.given) and not _is_number(value):
                self.saved[value] = None


def _needed(nodes: Sequence[Node], outputs: Sequence[Arg]) -> Iterator[Node]:
    """The nodes without views and constants that nobody reads."""
    read, kept = set(values_in(tuple(outputs))), []
    for node in reversed(nodes):
        if is_call(node) or not read.isdisjoint(node.results):
            read.update(node.operands)
            kept.append(node)
    return reversed(kept)


def _renamed(value: Value, name: str) -> Value:
    return value if value.name == name else Value(name, value.type)


def _is_number(value: Value) -> bool:
    return isinstance(value.type, ScalarType)
