"""What a compile did, as data: pass by pass, call by call, byte by byte. docs/report.md says what
each field means; docs/report-schema.json is its form as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rewright.passes import Decision

FORMAT: Final = "rewright-report"
VERSION: Final = 1


@dataclass(frozen=True)
class PassRow:
    """What one pass left; the first row is the graph as it came. Peak is in bytes beyond the
    inputs, time in seconds: what the pass took, and what a run is estimated to take after it.
    `renamed` says what became of a name (nothing: it is gone)."""

    spec: str
    name: str
    file: str
    seconds: float
    nodes_before: int
    nodes: int
    calls: int
    peak_bytes: int
    estimated_seconds: float
    decided: int
    refused: int
    renamed: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class NodeRow:
    """Where a node of the source graph runs: ours or aten (in the call `kernel`), view, constant,
    or gone."""

    name: str
    op: str
    type: str
    runs: str
    kernel: str
    loc: str


@dataclass(frozen=True)
class KernelRow:
    """One call of the schedule: what it runs, moves, and takes. `function` is the kernel's name
    when it is ours; `floor_seconds` is what the target's figures leave it at the least, `bound`
    what most of that is."""

    name: str
    function: str
    kind: str
    op: str
    ops: tuple[str, ...]
    nodes: tuple[str, ...]
    phase: str
    flops: int
    read_bytes: int
    written_bytes: int
    predicted_seconds: float
    low_seconds: float
    high_seconds: float
    floor_seconds: float
    bound: str
    who: str
    measured_seconds: float | None
    locs: tuple[str, ...]


@dataclass(frozen=True)
class RecomputedRow:
    """A value that is computed again, and what that saves and takes: the bytes that need not be
    held, the seconds of the call (0 for a node inside of one)."""

    name: str
    of: str
    kernel: str
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class BufferRow:
    """A storage, from call `first` to call `last`; `offset` is its place in the arena, or None for
    a tensor of its own."""

    name: str
    nbytes: int
    first: int
    last: int
    offset: int | None
    placed: bool


@dataclass(frozen=True)
class MemoryRow:
    """Bytes beyond the inputs: at each call of the graph as it came, and of the schedule."""

    budget_bytes: int | None
    arena_bytes: int
    peak_bytes: int
    peak_at: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """Everything there is to say about one compile. `measured_seconds` are those of a run as a
    whole, `sources` the lines of the user's source by their place."""

    rewright: str
    torch: str
    graph: str
    target: str
    options: Mapping[str, str]
    pass_seconds: float
    build_seconds: float
    measured_seconds: float | None
    passes: tuple[PassRow, ...]
    nodes: tuple[NodeRow, ...]
    kernels: tuple[KernelRow, ...]
    recomputed: tuple[RecomputedRow, ...]
    buffers: tuple[BufferRow, ...]
    memory: MemoryRow
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]
    sources: Mapping[str, str]

    def noting(self, *notes: str) -> Report:
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    def built(self, seconds: float) -> Report:
        return dataclasses.replace(self, build_seconds=seconds)

    def measured(self, whole: float, calls: Mapping[str, float]) -> Report:
        """With the seconds of a run, and of calls by their names."""
        kernels = (
            dataclasses.replace(row, measured_seconds=calls.get(row.name)) for row in self.kernels
        )
        return dataclasses.replace(self, measured_seconds=whole, kernels=tuple(kernels))

    def counts(self) -> dict[str, int]:
        """Nodes of the source graph by where they run."""
        return dict(sorted(Counter(n.runs for n in self.nodes).items()))

    def as_json(self) -> dict[str, Any]:
        from rewright.report_json import to_json

        return {"format": FORMAT, "version": VERSION, **to_json(self)}

    def __str__(self) -> str:
        from rewright.tables import pass_table

        counted = ", ".join(f"{count} {what}" for what, count in self.counts().items())
        lines = [pass_table(self.passes), f"nodes: {counted}"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
