"""What a loop nest does, counted: the full model's view of a kernel.

A sketch sees nodes and their types; a nest has what views, merged axes and stages make of them:
which reads jump from lane to lane, how long the inner loop is, what is done once a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from rewright.costmodel.facts import CLASSES
from rewright.ir import hint
from rewright.ir.loops import (
    Affine,
    Apply,
    Axis,
    Buffer,
    Convert,
    Load,
    Nest,
    Reduce,
    Stage,
    Store,
    subterms,
)
from rewright.ir.loops.nest import Inside, Position, Round

LANES: Final = 16
LINE_BYTES: Final = 64


@dataclass
class Counts:
    """Of one run. Operations are by class (see `costmodel.facts`), loads and stores by how lanes
    step: side by side, all at one place, apart; `turned` are loads and stores that step apart but
    lie side by side along another axis, so that tiles of them can be turned round."""

    operations: list[int] = field(default_factory=lambda: [0] * 4)
    converts: int = 0
    selects: int = 0
    positions: int = 0
    guards: int = 0
    side_by_side: int = 0
    at_one_place: int = 0
    apart: int = 0
    turned: int = 0
    stores: int = 0
    stores_apart: int = 0
    reductions: int = 0


@dataclass(frozen=True)
class NestFacts:
    """The loops of a nest and what they do.

    `outer` inner loops are run, each over `inner` elements. `statements` are those of the longest
    stage, `row_share` is the share of operations that are done once a row. `lines` are the bytes
    of the cache lines touched, `step` the most bytes between lanes."""

    style: str
    rows: int
    columns: int
    inner: int
    outer: int
    stages: int
    statements: int
    kept: int
    reads: int
    writes: int
    counts: Counts
    row_share: float
    bytes_read: int
    bytes_written: int
    lines: float
    step: int
    halves: int
    doubles: int
    integers: int


def nest_facts(nest: Nest) -> NestFacts:
    """Counts at the hints of all sizes."""
    sizes = {axis.name: max(1, hint(axis.size)) for axis in nest.axes}
    style = nest.order.style if nest.order is not None else "elements"
    lane = _lane_axis(nest, style)
    rows = math.prod(sizes[a.name] for a in nest.rows)
    columns = math.prod(sizes[a.name] for a in nest.cols)
    counts, of_rows, touched = Counts(), Counts(), _Touched(sizes)
    for stage in nest.stages:
        times = rows if stage.per == "row" else rows * columns
        _count(stage, times, lane, counts)
        if stage.per == "row" and nest.cols:
            _count(stage, times, lane, of_rows)
        touched.add(stage)
    inner = sizes[lane.name] if lane is not None else 1
    total = sum(counts.operations) + counts.side_by_side + counts.apart + counts.turned
    in_rows = sum(of_rows.operations) + of_rows.side_by_side + of_rows.apart + of_rows.turned
    types = {b.name: b.type.dtype for b in (*nest.inputs, *nest.outputs)}
    read, written = touched.bytes(types, nest.inputs), touched.bytes(types, nest.outputs)
    return NestFacts(
        style,
        rows,
        columns,
        inner,
        rows * columns // inner,
        len(nest.stages),
        max((len(s.body) for s in nest.stages), default=0),
        len(nest.kept),
        len(nest.inputs),
        len(nest.outputs),
        counts,
        in_rows / max(total, 1),
        sum(read.values()),
        sum(written.values()),
        touched.lines(types),
        touched.longest_step(lane, types),
        *_widths({**read, **written}, types),
    )


def _lane_axis(nest: Nest, style: str) -> Axis | None:
    """The axis that lanes run along."""
    if style == "lanes":
        return nest.cols[-1] if nest.cols else None
    return nest.rows[-1] if nest.rows else None


def _count(stage: Stage, times: int, lane: Axis | None, counts: Counts) -> None:
    name = lane.name if lane is not None else ""
    for statement in stage.body:
        if isinstance(statement, Store):
            counts.stores += times
            counts.stores_apart += times * (_step(statement.at, name) > 1)
            continue
        counts.reductions += times * isinstance(statement, Reduce)
        for term in subterms(statement.term):
            match term:
                case Load(at=at, guards=guards):
                    counts.guards += times * len(guards)
                    _count_load(at, name, times, counts)
                case Apply(name=what):
                    counts.operations[CLASSES.get(what, 0)] += times
                    counts.selects += times * (what == "select")
                case Convert() | Round():
                    counts.converts += times
                case Position() | Inside():
                    counts.positions += times


def _count_load(at: Affine, lane: str, times: int, counts: Counts) -> None:
    step = _step(at, lane)
    if step == 1:
        counts.side_by_side += times
    elif step == 0:
        counts.at_one_place += times
    elif any(hint(factor) == 1 for _, factor in at.terms):
        counts.turned += times
    else:
        counts.apart += times


def _step(at: Affine, axis: str) -> int:
    return abs(hint(at.coefficient(axis)))


class _Touched:
    """Which elements of each buffer the loops touch, as the axes that an index moves along."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.indices: dict[str, dict[Affine, None]] = {}

    def add(self, stage: Stage) -> None:
        for statement in stage.body:
            if isinstance(statement, Store):
                self.indices.setdefault(statement.buffer, {})[statement.at] = None
                continue
            for term in subterms(statement.term):
                if isinstance(term, Load):
                    self.indices.setdefault(term.buffer, {})[term.at] = None

    def elements(self, at: Affine) -> int:
        return math.prod(self.sizes.get(name, 1) for name, _ in at.terms)

    def bytes(self, types: Mapping[str, torch.dtype], buffers: Iterable[Buffer]) -> dict[str, int]:
        """By buffer; indices that differ by their offset alone touch other elements."""
        found = {}
        for buffer in buffers:
            name = buffer.name
            whole = hint(buffer.type.storage_elements)
            seen = sum(self.elements(at) for at in self.indices.get(name, ()))
            found[name] = min(seen, whole) * types[name].itemsize
        return found

    def lines(self, types: Mapping[str, torch.dtype]) -> float:
        """Bytes of cache lines, when each run of neighbours has lines of its own."""
        total = 0.0
        for name, indices in self.indices.items():
            item = types[name].itemsize
            for at in indices:
                run = next(
                    (self.sizes.get(axis, 1) for axis, factor in at.terms if hint(factor) == 1), 1
                )
                runs = self.elements(at) / run
                total += runs * max(run * item, min(LINE_BYTES, run * item + LINE_BYTES / 2))
        return total

    def longest_step(self, lane: Axis | None, types: Mapping[str, torch.dtype]) -> int:
        """Bytes between lanes, of the access where they are farthest apart."""
        if lane is None:
            return 0
        return max(
            (
                _step(at, lane.name) * types[name].itemsize
                for name, indices in self.indices.items()
                for at in indices
            ),
            default=0,
        )


def _widths(moved: Mapping[str, int], types: Mapping[str, torch.dtype]) -> tuple[int, int, int]:
    """Bytes of half types, of double, and of integers and truth."""
    halves = doubles = integers = 0
    for name, nbytes in moved.items():
        dtype = types[name]
        if not dtype.is_floating_point:
            integers += nbytes
        elif dtype.itemsize <= 2:
            halves += nbytes
        elif dtype.itemsize == 8:
            doubles += nbytes
    return halves, doubles, integers
