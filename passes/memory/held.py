"""What a schedule holds, node by node: read off its allocations, or its lifetimes before it has
any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from rewright.ir import Graph, Kind, Node, TensorType, Value, lasts, shares_input_storage
from rewright.passes.memory.lifetimes import lifetimes


@dataclass(frozen=True)
class Held:
    """A storage that is there from node `first` to node `last`, both included: at `offset` in the
    arena, or a tensor of its own (None)."""

    value: Value
    first: int
    last: int
    offset: int | None = None

    @property
    def nbytes(self) -> int:
        """At the hints."""
        return self.value.type.nbytes_hint if isinstance(self.value.type, TensorType) else 0


def held(graph: Graph) -> tuple[Held, ...]:
    """All that a run allocates, in order of allocation; outputs are there until the end."""
    if any(n.op.kind is Kind.STORAGE for n in graph.nodes):
        return tuple(_allocated(graph))
    last = len(graph.nodes) - 1
    return tuple(Held(f.value, f.start, min(f.last, last)) for f in lifetimes(graph))


def held_bytes(graph: Graph) -> list[int]:
    """Bytes that a run holds at each node beyond its inputs, at the hints: the whole arena, and the
    tensors of their own that are alive."""
    changes, arena = [0] * (len(graph.nodes) + 1), 0
    for found in held(graph):
        if found.offset is not None:
            arena = max(arena, found.offset + found.nbytes)
            continue
        changes[found.first] += found.nbytes
        changes[found.last + 1] -= found.nbytes
    return [arena + own for own in accumulate(changes[:-1])]


def peak_bytes(graph: Graph) -> int:
    """The most bytes that a run holds at one time beyond its inputs."""
    return max(held_bytes(graph), default=0)


def _allocated(graph: Graph) -> Iterator[Held]:
    """Of a kernel-level graph."""
    offsets = {n.result: n.kwarg("offset") for n in graph.nodes if n.op.name == "rw.alloc"}
    freed = {
        value: i - 1
        for i, node in enumerate(graph.nodes)
        if node.op.name == "rw.free"
        for value in node.operands
    }
    for i, node in enumerate(graph.nodes):
        if node.op.kind is Kind.STORAGE or lasts(node) or shares_input_storage(node):
            continue
        for value, buffer in zip(node.results, _destinations(node), strict=True):
            offset = None if buffer is None else offsets[buffer]
            last = freed.get(value, len(graph.nodes) - 1)
            yield Held(value, i, last, offset if isinstance(offset, int) else None)


def _destinations(node: Node) -> tuple[Value | None, ...]:
    """The buffer of the arena that each result is written into."""
    out = node.kwarg("out")
    if not isinstance(out, tuple):
        return (None,) * len(node.results)
    return tuple(buffer if isinstance(buffer, Value) else None for buffer in out)
