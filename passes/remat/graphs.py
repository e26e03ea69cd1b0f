"""From a graph to the problem of its schedule, and from a schedule back to a graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from rewright.ir import (
    Arg,
    Graph,
    Node,
    TensorType,
    Value,
    fresh_names,
    is_call,
    map_values,
    storage_roots,
    values_in,
)
from rewright.ir.effects import effects_of, may_repeat, without_state
from rewright.ir.storage import keeps_operands

from .problem import Order, Problem, Step


@dataclass(frozen=True)
class Boundary:
    """Where the forward of a training step ends and its backward begins: what the forward must have
    made by then, and the values that come from outside."""

    returned: tuple[Value, ...]
    tangents: frozenset[Value]


class Rescheduled(NamedTuple):
    """A graph whose calls run in another order. `split` of its nodes belong to the forward (all
    without a boundary); `origins` are the names of the calls that its calls are runs of."""

    graph: Graph
    split: int
    origins: Mapping[str, str]

    @property
    def runs(self) -> Mapping[str, tuple[str, ...]]:
        """The names of calls that run more than once, and those of all their runs."""
        found: dict[str, tuple[str, ...]] = {}
        for name, of in self.origins.items():
            found[of] = (*found.get(of, ()), name)
        return {of: names for of, names in found.items() if len(names) > 1}


class Scheduled:
    """A graph whose calls are the steps of a problem, in their order; after the calls of the
    forward comes one more, the boundary."""

    def __init__(
        self,
        graph: Graph,
        seconds: Mapping[str, float],
        boundary: Boundary | None = None,
        workspace: Mapping[str, int] | None = None,
        once: Collection[Value] = (),
    ) -> None:
        """`seconds` of each call by its name; `workspace` bytes of those that hold some while they
        run; `once` are values that nobody may compute again."""
        self.graph, self.seconds, self.boundary = graph, seconds, boundary
        self.once = frozenset(once)
        self.workspace = {} if workspace is None else workspace
        self.roots = storage_roots(graph)
        # What is written back when the forward ends: who reads it again reads something else.
        self.written = {target for target, _ in graph.updates}

    @cached_property
    def nodes(self) -> tuple[Node | None, ...]:
        """The call of each step; None is the boundary."""
        calls: list[Node | None] = [node for node in self.graph.nodes if is_call(node)]
        if self.boundary is not None:
            calls.insert(self._first_of_backward(), None)
        return tuple(calls)

    def _first_of_backward(self) -> int:
        """How many calls come before the first that needs a tangent."""
        assert self.boundary is not None
        late, count = set(self.boundary.tangents), 0
        for node in self.graph.nodes:
            needs = not late.isdisjoint(node.operands)
            if needs:
                late.update(node.results)
            if is_call(node):
                if needs:
                    return count
                count += 1
        return count

    @cached_property
    def values(self) -> Mapping[Value, int]:
        """The number of each value that a step makes; tangents are made by the boundary."""
        made = [v for node in self.nodes for v in self._made(node)]
        return {value: i for i, value in enumerate(made)}

    def _made(self, node: Node | None) -> tuple[Value, ...]:
        if node is None:
            assert self.boundary is not None
            inputs = (i.value for i in self.graph.inputs)
            return tuple(v for v in inputs if v in self.boundary.tangents)
        return node.results

    def needed(self, value: Value) -> list[int]:
        """What must live where a value is read: its own memory and that of what it may be a view
        of."""
        found = []
        while True:
            if value in self.values:
                found.append(self.values[value])
            maker = self.graph.producers.get(value)
            if maker is None or self.roots[value] == value:
                return found
            value = maker.operands[0]

    @cached_property
    def problem(self) -> Problem:
        kept = {n for value in self.graph.returned for n in self.needed(value)}
        if self.boundary is not None:  # gradients are their caller's
            kept |= {self.values[value] for value in self.boundary.tangents}
        sizes = [_nbytes(value) for value in self.values]
        steps: list[Step] = []
        tokens: dict[object, int] = {}
        for node in self.nodes:
            step = self._step(node, kept)
            for effect in () if node is None else effects_of(node):
                # A value of no bytes, from each step with an effect to the next.
                before = (tokens[effect],) if effect in tokens else ()
                tokens[effect] = len(sizes)
                sizes.append(0)
                makes = (*step.makes, tokens[effect])
                step = dataclasses.replace(step, reads=(*step.reads, *before), makes=makes)
            steps.append(step)
        return Problem(tuple(steps), tuple(sizes), frozenset(kept))

    @cached_property
    def overstated(self) -> int:
        """Bytes that the problem holds to the end of a training step although they are only written
        to inputs, and let go when the forward ends."""
        if self.boundary is None:
            return 0
        returned = {n for value in values_in(self.graph.outputs) for n in self.needed(value)}
        written = {n for _, value in self.graph.updates for n in self.needed(value)}
        return sum(self.problem.sizes[n] for n in written - returned)

    def _step(self, node: Node | None, kept: set[int]) -> Step:
        makes = tuple(self.values[v] for v in self._made(node))
        if node is None:
            assert self.boundary is not None
            reads = (n for value in self.boundary.returned for n in self.needed(value))
            return Step("the boundary", 0.0, tuple(dict.fromkeys(reads)), makes, again=False)
        reads = (n for value in node.operands for n in self.needed(value))
        again = not kept.issuperset(makes) and self._may_repeat(node)
        held = self.workspace.get(node.name, 0)
        seconds = self.seconds[node.name]
        return Step(node.name, seconds, tuple(dict.fromkeys(reads)), makes, held, again)

    def _may_repeat(self, node: Node) -> bool:
        again = without_state(node)
        reads_written = any(self.roots[value] in self.written for value in again.operands)
        free = self.once.isdisjoint(node.results) and not reads_written
        return free and may_repeat(node) and not keeps_operands(node)

    # --- and back ---------------------------------------------------------------------------

    def rescheduled(self, order: Order) -> Rescheduled:
        """The graph whose calls run in that order, some of them again, each under a name of its
        own."""
        writer = _Writer(self)
        split = None
        for i in order:
            node = self.nodes[i]
            if node is None:
                writer.views_of(self.boundary.returned if self.boundary else ())
                split = len(writer.nodes)
            else:
                writer.run(node)
        # Not `graph.returned`, a set, whose order differs from process to process.
        writer.views_of((*values_in(self.graph.outputs), *(v for _, v in self.graph.updates)))
        graph = dataclasses.replace(
            self.graph,
            nodes=tuple(writer.nodes),
            outputs=writer.renamed(self.graph.outputs),
            updates=tuple((t, writer.now[v]) for t, v in self.graph.updates),
        )
        split = len(writer.nodes) if split is None else split
        return Rescheduled(graph, split, writer.origins)


class _Writer:
    """Nodes of a schedule, one after the other. `now` is what stands for each value of the graph;
    views are made anew of what was made anew."""

    def __init__(self, scheduled: Scheduled) -> None:
        self.scheduled, self.nodes = scheduled, list[Node]()
        graph = scheduled.graph
        self.fresh = fresh_names(v.name for v in graph.values)
        self.now = {i.value: i.value for i in graph.inputs}
        self.kept = {scheduled.roots[value] for value in graph.returned}
        self.seen: set[Value] = set()
        self.origins: dict[str, str] = {}
        # Of a view, what it was made of.
        self.based: dict[Value, tuple[Value, ...]] = {}

    def run(self, node: Node) -> None:
        if not self.seen.isdisjoint(node.results):
            node = without_state(node)
        self.views_of(node.operands)
        results = tuple(self.named(value) for value in node.results)
        made = dataclasses.replace(node.replace(self.now), results=results)
        self.nodes.append(made)
        self.origins[made.name] = node.name
        # Who is kept is kept as it was first made; of a run for another result it is let go.
        self.now |= {
            old: new
            for old, new in zip(node.results, results, strict=True)
            if old not in self.now or self.scheduled.roots[old] not in self.kept
        }

    def named(self, value: Value) -> Value:
        """The value itself, the first time, then others of its type."""
        if value in self.seen:
            return Value(self.fresh(value.name), value.type)
        self.seen.add(value)
        return value

    def views_of(self, values: Iterable[Value]) -> None:
        """Make what is no call and is read, of what it reads as that stands now."""
        for value in values:
            node = self.scheduled.graph.producers.get(value)
            if node is None or is_call(node):
                continue
            self.views_of(node.operands)
            base = tuple(self.now[v] for v in node.operands)
            if value not in self.now or self.based[value] != base:
                results = tuple(self.named(v) for v in node.results)
                self.nodes.append(dataclasses.replace(node.replace(self.now), results=results))
                self.now |= dict(zip(node.results, results, strict=True))
                self.based |= dict.fromkeys(node.results, base)

    def renamed(self, args: Sequence[Arg]) -> tuple[Arg, ...]:
        return tuple(map_values(arg, self.now) for arg in args)


def _nbytes(value: Value) -> int:
    return value.tensor.nbytes_hint if isinstance(value.type, TensorType) else 0
