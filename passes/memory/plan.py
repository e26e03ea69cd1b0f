"""The memory pass: from values to addresses. What it writes is the schedule that runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from rewright.ir import (
    CheckError,
    Graph,
    Node,
    Step,
    Value,
    fresh_names,
    op,
)
from rewright.passes.base import Env, Pass
from rewright.passes.memory.judge import judge
from rewright.passes.memory.lifetimes import Lifetime, frees_after, lifetimes
from rewright.passes.memory.problem import (
    Buffer,
    MemoryPlan,
    MemoryProblem,
    lower_bound,
)
from rewright.passes.memory.solve import solve
from rewright.passes.specs import Bytes

ANY_SIZE: Final = Bytes(1 << 62)


@dataclass(frozen=True)
class PlanMemory(Pass, name="memory", takes="fused", gives="kernel"):
    """Give every intermediate an address in one arena, and say when it is allocated and freed.

    before:
        graph f(%x: f32[8, 8], %y: f32[8, 8]) {
          %a = aten.mm.default(%x, %y) : f32[8, 8]
          %b = aten.mm.default(%a, %y) : f32[8, 8]
          %c = aten.mm.default(%b, %y) : f32[8, 8]
          %d = aten.mm.default(%c, %y) : f32[8, 8]
          return %d
        }
    after:
        graph f(%x: f32[8, 8], %y: f32[8, 8]) {
          %a_buffer = rw.alloc(offset=0) : f32[8, 8]
          %a = aten.mm.default(%x, %y, out=[%a_buffer]) : f32[8, 8]
          %b_buffer = rw.alloc(offset=256) : f32[8, 8]
          %b = aten.mm.default(%a, %y, out=[%b_buffer]) : f32[8, 8]
          rw.free(%a)
          %c_buffer = rw.alloc(offset=0) : f32[8, 8]
          %c = aten.mm.default(%b, %y, out=[%c_buffer]) : f32[8, 8]
          rw.free(%b)
          %d = aten.mm.default(%c, %y) : f32[8, 8]
          rw.free(%c)
          return %d
        }

    What leaves the graph, what ATen can only allocate by itself, and what has over `most` bytes, is
    a tensor of its own. With symbolic sizes the offsets are those at the hints; the runtime places
    again at other sizes.
    """

    alignment: int = 64
    most: Bytes = ANY_SIZE

    def run(self, graph: Graph, env: Env) -> Graph:
        found = lifetimes(graph, self.most)
        problem = problem_of(found, self.alignment)
        plan = solve(problem)
        fault = judge(problem, plan)
        if fault is not None:
            raise CheckError(f"the memory plan is wrong: {fault}", who="memory")
        names = [b.name for b in problem.buffers]
        offsets = dict(zip(names, plan.offsets, strict=True))
        nodes = tuple(_scheduled(graph, found, offsets))
        env.log.decide("memory", graph.name, _sentence(problem, plan))
        return dataclasses.replace(graph, nodes=nodes).with_step(Step(str(self)))


def problem_of(found: tuple[Lifetime, ...], alignment: int) -> MemoryProblem:
    """The placed values as intervals of steps, sizes at the hints."""
    return MemoryProblem(
        tuple(
            Buffer(f.value.name, f.start, f.last + 1, f.value.tensor.nbytes_hint)
            for f in found
            if f.placed
        ),
        alignment,
    )


def _scheduled(
    graph: Graph, found: tuple[Lifetime, ...], offsets: Mapping[str, int]
) -> Iterator[Node]:
    """The nodes with their allocations in front and their frees behind."""
    frees = frees_after(graph, found)
    placed = {f.value for f in found if f.placed}
    fresh = fresh_names(value.name for value in graph.values)
    for step, node in enumerate(graph.nodes):
        buffers: list[Value | None] = []
        for value in node.results:
            if value not in placed:
                buffers.append(None)
                continue
            buffer = Value(fresh(f"{value.name}_buffer"), value.type)
            offset = offsets[value.name]
            yield Node(op("rw.alloc"), (), (("offset", offset),), (buffer,), loc=node.loc)
            buffers.append(buffer)
        if any(b is not None for b in buffers):
            kwargs = (*node.kwargs, ("out", tuple(buffers)))
            yield dataclasses.replace(node, kwargs=tuple(sorted(kwargs, key=lambda k: k[0])))
        else:
            yield node
        for value in frees.get(step, ()):
            yield Node(op("rw.free"), (value,), (), (), loc=node.loc)


def _sentence(problem: MemoryProblem, plan: MemoryPlan) -> str:
    total = sum(b.nbytes for b in problem.buffers)
    bound = lower_bound(problem)
    over = f", {plan.nbytes / bound - 1:.1%} over the largest live set" if bound else ""
    return (
        f"{len(problem.buffers)} values of {total:,} bytes share an arena of "
        f"{plan.nbytes:,} bytes{over}"
    )
