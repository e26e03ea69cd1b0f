"""Where the calls of a program find what they read: how many bytes were touched since it was.

That is the reuse distance (Mattson, Gecsei, Slutz, Traiger, 1970), in bytes instead of lines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rewright.ir import Graph, Node, TensorType, Value, is_call, storage_roots, values_in
from rewright.ir.target import Target

# The share of a cache that is sure to hold what was touched last: it does not drop what is oldest,
# and more goes through it than calls move (lines of memory that is new, other programs' data).
KEPT: Final = 0.5


@dataclass(frozen=True)
class Reuse:
    """What a call moves, in bytes: `read` and `written`, each with how many were touched since they
    were; `returned` is what it writes into new memory. `since` counts the calls since the last one
    like it, or all of them."""

    node: Node
    read: tuple[tuple[Value, int, int], ...]
    written: tuple[tuple[int, int], ...]
    returned: int
    since: int

    @property
    def moved(self) -> int:
        return sum(n for _, n, _ in self.read) + sum(n for n, _ in self.written) + self.returned


@dataclass(frozen=True)
class Walk:
    """One run of a program that runs again and again: its calls, the bytes that they move, and how
    many views of inputs are made."""

    calls: Sequence[Reuse]
    moved: int
    views: int


def walk(graph: Graph) -> Walk:
    """Of the second run, sizes at their hints."""
    steps = _Steps(graph)
    steps.run()
    before = steps.clock
    calls = steps.run()
    inputs = {i.value for i in graph.inputs}
    views = sum(
        not is_call(n) and steps.roots.get(n.operands[0]) in inputs
        for n in graph.nodes
        if n.operands
    )
    return Walk(calls, steps.clock - before, views)


@dataclass
class _Steps:
    """The bytes moved so far, and at which of them each storage was last touched."""

    graph: Graph
    clock: int = 0
    roots: Mapping[Value, Value] = field(init=False)
    returned: frozenset[Value] = field(init=False)
    touched: dict[Value, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roots = storage_roots(self.graph)
        outputs = (v for v in self.graph.outputs if isinstance(v, Value))
        self.returned = frozenset(self.roots[v] for v in outputs)

    def run(self) -> list[Reuse]:
        nodes = [node for node in self.graph.nodes if is_call(node)]
        seen: dict[object, int] = {}
        found = []
        for place, node in enumerate(nodes):
            kind = node.op.name, tuple(v.type for v in node.operands)
            found.append(self.call(node, place - seen.get(kind, place - len(nodes))))
            seen[kind] = place
        return found

    def call(self, node: Node, since: int) -> Reuse:
        operands = [v for v in _read(node) if isinstance(v.type, TensorType)]
        results = [v for v in node.results if isinstance(v.type, TensorType)]
        read = tuple((v, v.tensor.nbytes_hint, self.distance(v)) for v in operands)
        new = [v for v in results if self.roots[v] in self.returned]
        kept = [v for v in results if self.roots[v] not in self.returned]
        written = tuple((v.tensor.nbytes_hint, self.distance(v)) for v in kept)
        reuse = Reuse(node, read, written, sum(v.tensor.nbytes_hint for v in new), since)
        self.clock += reuse.moved
        for v in (*operands, *results):
            self.touched[self.roots[v]] = self.clock
        return reuse

    def distance(self, value: Value) -> int:
        return self.clock - self.touched.get(self.roots[value], 0)


def farther(
    moved: Iterable[tuple[int, int]], near: float, target: Target, room: float = 1.0
) -> float:
    """Seconds that bytes take longer than at `near` bytes/s: (bytes, how many were touched since
    they were), each in the memory whose share `room` holds both."""
    paces = ((n, target.memory(int((n + d) / room))[1]) for n, d in moved)
    return sum(n * max(0.0, 1 / pace - 1 / near) for n, pace in paces)


def far_seconds(found: Walk, target: Target) -> list[float]:
    """By call, what reading takes longer in a run than where the call runs alone, over and over."""
    return [
        farther(((n, d) for _, n, d in call.read), target.memory(call.moved)[1], target, KEPT)
        for call in found.calls
    ]


def _read(node: Node) -> Collection[Value]:
    """Operands, without the buffers that results go to."""
    if node.kwarg("out") is None:
        return dict.fromkeys(node.operands)
    own = [a for name, a in node.kwargs if name != "out"]
    return dict.fromkeys(values_in((node.args, own)))


def far_values(found: Walk, target: Target) -> frozenset[Value]:
    """Operands that no cache holds any more when they are read."""
    last = max((cache.nbytes for cache in target.caches), default=0)
    return frozenset(v for call in found.calls for v, n, d in call.read if n + d > last)
