"""What passes may ask: a cost model, and tools that run things. `Env` hands them both."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from rewright.costmodel.estimate import Estimate, show_seconds, total
from rewright.costmodel.reuse import Walk, far_seconds, far_values, walk
from rewright.costmodel.sketch import Kernels, Sketch
from rewright.ir import Graph, Node, Value, storage_roots
from rewright.ir.target import Target

# Calls that the explanation of a whole graph's time names.
NAMED_CALLS = 3


class CostModel(Protocol):
    """How long nodes take on one target, sizes at their hints.

    A node is one call: an operator that ATen runs, or a region, which carries its body. Views and
    other nodes that call nothing cost nothing.
    """

    @property
    def target(self) -> Target: ...

    def estimate(self, nodes: Sequence[Node], cold: Collection[Value] = ()) -> list[Estimate]:
        """One estimate a node; never None: what the model does not know makes it wide. The values
        `cold` are in no cache."""
        ...

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        """How much longer kernels take apart than one that does the work of all; for screening
        thousands of candidates. `kernels` makes those apart and last the one of all, for a model
        that wants to look closer."""
        ...

    def program(self, found: Walk, alone: Sequence[Estimate]) -> Estimate:
        """A run of calls one after the other, which take `alone` each by itself."""
        ...

    def compare(self, a: Sequence[Node], b: Sequence[Node]) -> Estimate:
        """How much longer all of `a` takes than all of `b`."""
        ...


class Tools(Protocol):
    """What only the driver can do for passes: build calls and run them."""

    @property
    def seconds(self) -> float:
        """How long kernels may be measured for; 0: not at all."""
        ...

    def race(self, calls: Sequence[Graph]) -> list[float] | None:
        """Seconds that graphs of one library call each take on the target, as measured in some
        hundredths of a second, or as remembered; None when one of them does not run."""
        ...

    def races(self, groups: Sequence[Sequence[Graph]]) -> list[list[float] | None]:
        """`race` of each group by itself, for calls that are kernels: they are built together."""
        ...

    def measure(self, calls: Sequence[Graph]) -> list[Estimate] | None:
        """What graphs of one call each take on the target, timed in turn, or as it was remembered;
        None when there is no budget left for it, or one of them does not run."""
        ...


def graph_estimate(cost: CostModel, graph: Graph) -> Estimate:
    """The time of a run of a whole graph, one of many; the longest calls are named."""
    found, estimates = _each(cost, graph)
    calls = [call.node for call in found.calls]
    alone, whole = total(estimates), cost.program(found, estimates)
    longest = sorted(range(len(calls)), key=lambda i: (-estimates[i].seconds, i))[:NAMED_CALLS]
    reasons = [f"{len(calls)} calls"]
    if whole.seconds != alone.seconds:
        reasons += [f"{show_seconds(alone.seconds)} if each ran alone"]
    for i in longest:
        why = "; ".join(estimates[i].because)
        reasons.append(f"%{calls[i].name} {show_seconds(estimates[i].seconds)}, {why}")
    return Estimate(whole.seconds, whole.low, whole.high, tuple(reasons))


def expected_seconds(cost: CostModel, graph: Graph) -> list[tuple[Node, float]]:
    """What to tell plans for one graph apart by: each call of a run, and what it is expected to
    take alone and longer for what it reads after the others."""
    found = walk(graph)
    calls = [call.node for call in found.calls]
    far = far_seconds(found, cost.target)
    alone = cost.estimate(calls)
    return [(n, e.mean + more) for n, e, more in zip(calls, alone, far, strict=True)]


def call_seconds(cost: CostModel, graph: Graph) -> Mapping[str, float]:
    """The time of each call of a run, by the name of its node."""
    return {node.name: e.seconds for node, e in call_estimates(cost, graph)}


def call_estimates(cost: CostModel, graph: Graph) -> list[tuple[Node, Estimate]]:
    """Each call of a run, in order, and the time that it takes there."""
    found, estimates = _each(cost, graph)
    return [(call.node, e) for call, e in zip(found.calls, estimates, strict=True)]


def _each(cost: CostModel, graph: Graph) -> tuple[Walk, Sequence[Estimate]]:
    found = walk(graph)
    calls = [call.node for call in found.calls]
    return found, cost.estimate(calls, far_values(found, cost.target))


def inputs_and_views(graph: Graph) -> frozenset[Value]:
    """Inputs of a graph, and values that share their memory."""
    inputs = {i.value for i in graph.inputs}
    return frozenset(v for v, root in storage_roots(graph).items() if root in inputs)
