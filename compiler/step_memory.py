"""What a training step allocates, node by node: arenas, what the forward hands over, gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Final

from rewright.costmodel import show_bytes
from rewright.ir import (
    BudgetError,
    Size,
    Symbol,
    Value,
    evaluate,
    hint,
    storage_roots,
    symbols_of,
    values_in,
)
from rewright.passes import PlanMemory
from rewright.passes.memory import lifetimes, problem_of, solve
from rewright.passes.remat import SMALL, Halves

# What a half still needs.
MEMORY: Final = PlanMemory(most=SMALL)


@dataclass(frozen=True)
class Span:
    """A storage of `nbytes`, there from node `first` to node `last` of a step, both included;
    `placed` in the arena of its half, or a tensor of its own."""

    first: int
    last: int
    nbytes: Size
    placed: bool = False


@dataclass(frozen=True)
class StepMemory:
    """Everything that a step allocates: spans over the nodes of the forward, `split` of them, and
    then of the backward, and an arena for each."""

    spans: tuple[Span, ...]
    arenas: tuple[int, int]
    split: int
    count: int

    def bytes(self, sizes: Mapping[str, int] | None = None) -> list[int]:
        """At each node, beyond what was there before the step: at the hints, or other sizes by the
        names of their symbols."""
        live, placed = self._live(False, sizes), self._live(True, sizes)
        halves = (placed[: self.split], placed[self.split :])
        forward, backward = (
            max(arena, *part) if part else arena
            for arena, part in zip(self.arenas, halves, strict=True)
        )
        arenas = [forward] * self.split + [backward] * (self.count - self.split)
        return [a + b for a, b in zip(live, arenas, strict=True)]

    def _live(self, placed: bool, sizes: Mapping[str, int] | None) -> list[int]:
        changes = [0] * (self.count + 1)
        for span in self.spans:
            if span.placed == placed:
                nbytes = hint(span.nbytes) if sizes is None else evaluate(span.nbytes, sizes)
                changes[span.first] += nbytes
                changes[span.last + 1] -= nbytes
        return list(accumulate(changes[:-1]))

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """Those that sizes go by."""
        return symbols_of(span.nbytes for span in self.spans)

    @property
    def peak(self) -> int:
        """The most bytes, at the hints and where every size is the largest that was declared."""
        declared = {s.name: s.high for s in self.symbols if s.high is not None}
        found = max(self.bytes(), default=0)
        if not declared or len(declared) < len(self.symbols):
            return found
        return max(found, *self.bytes(declared))


@dataclass(frozen=True)
class Promise:
    """A budget that a step keeps whatever its sizes are, or says that it does not."""

    memory: StepMemory
    budget: int
    kept: dict[tuple[int, ...], None] = field(default_factory=dict, compare=False, repr=False)

    def check(self, sizes: Mapping[str, int]) -> None:
        """Raises BudgetError for sizes at which the step takes more."""
        key = tuple(sizes.values())
        if key in self.kept:
            return
        peak = max(self.memory.bytes(sizes), default=0)
        if peak > self.budget:
            listed = ", ".join(f"{name} = {size}" for name, size in sizes.items())
            raise BudgetError(
                f"with {listed} the step takes {show_bytes(peak)}, and it was planned to take "
                f"{show_bytes(self.budget)}",
                who="memory_budget",
                help="compile it at its largest sizes, or without dynamic shapes",
            )
        self.kept[key] = None


def step_memory(halves: Halves) -> StepMemory:
    """Of halves at the fused level; what `MEMORY` makes of them."""
    split = len(halves.forward.nodes)
    count = split + len(halves.backward.nodes)
    spans, arenas = list(_handed(halves, split, count)), []
    ends = {0: split, split: count}
    for first, graph in ((0, halves.forward), (split, halves.backward)):
        found = lifetimes(graph, SMALL)
        arenas.append(solve(problem_of(found, MEMORY.alignment)).nbytes)
        leaving = {storage_roots(graph)[v] for v in graph.returned}
        for i, node in enumerate(graph.nodes, first):
            if node.name in halves.workspace:
                spans.append(Span(i, i, halves.workspace[node.name]))
        for life in found:
            if first == 0 and life.value in leaving:
                continue  # handed over
            last = min(first + life.last, ends[first] - 1)
            spans.append(Span(first + life.start, last, life.value.tensor.nbytes, life.placed))
    return StepMemory(tuple(spans), (arenas[0], arenas[1]), split, count)


def _handed(halves: Halves, split: int, count: int) -> Iterator[Span]:
    """Storages that outlive the forward's calls, and the gradients that the backward is given; what
    is only written to inputs is let go when the forward has returned."""
    roots = storage_roots(halves.forward)
    starts = {v: i for i, node in enumerate(halves.forward.nodes) for v in node.results}
    freed = _last_reads(halves)
    handed = dict.fromkeys((roots[v] for v in values_in(halves.forward.outputs)), count - 1)
    written = dict.fromkeys((roots[v] for _, v in halves.forward.updates), split - 1)
    for root, end in (written | handed).items():
        if root in starts:
            last = split + freed[root] if root in freed else end
            yield Span(starts[root], last, root.tensor.nbytes)
    for given in halves.backward.inputs:
        if given.role == "tangent" and split < count:
            yield Span(split, count - 1, given.value.tensor.nbytes)


def _last_reads(halves: Halves) -> Mapping[Value, int]:
    """Storages that were only saved, and the node of the backward after which they are free."""
    first, then = storage_roots(halves.forward), storage_roots(halves.backward)
    leaving = {then[v] for v in halves.backward.returned}
    kept = {first[v] for v in values_in(halves.forward.outputs[: halves.returned])}
    kept |= {first[v] for v in halves.saved if v in leaving}
    read = {then[v]: i for i, node in enumerate(halves.backward.nodes) for v in node.operands}
    last: dict[Value, int] = {}
    for value in halves.saved:
        root = first[value]
        last[root] = max(last.get(root, 0), read.get(value, 0))
    return {root: place for root, place in last.items() if root not in kept}
