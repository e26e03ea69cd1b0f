"""Numeric features of sketches: what screening sees of kernels that nobody has built yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from rewright.costmodel.features import cache_fills, vector_seconds
from rewright.costmodel.library_features import log_size
from rewright.costmodel.sketch import Sketch, weighed
from rewright.ir.loops.rough import ACCESS, COSTLY, SIMPLE
from rewright.ir.loops.schedule import LANES, SHARE
from rewright.ir.target import Target

SKETCH: Final = (
    *("expected", "elements", "rows", "row_length", "inner", "inner_remainder", "lanes"),
    *("columns", "nodes", "reductions", "sweeps", "simple", "divisions", "exponentials", "powers"),
    *("again", "work_per_element", "bytes_per_element", "reads", "writes"),
    *("read_contiguous", "read_small", "read_strided", "read_gathered", "written", "strided"),
    *("kept", "halves", "doubles", "integers", "guarded", "moved", "threads"),
    *("compute_seconds", "memory_seconds", "vector", "per_first_cache", "per_last_cache"),
)


def sketch_parts(s: Sketch, target: Target) -> tuple[float, ...]:
    """Seconds that work of each kind would take alone, a launch first."""
    tick, threads = vector_seconds(target), _threads(s, target)
    step = tick / LANES / threads
    bandwidth = target.memory(s.moved)[1] * threads / target.cores
    elements = s.elements * step
    return (
        target.launch_seconds,
        target.launch_seconds * (threads > 1),
        *(count * step for count in s.work),
        s.again * step,
        elements,
        elements * (s.reads + s.writes),
        elements * (s.sweeps - 1),
        elements * s.columns,
        elements * s.guarded,
        s.rows * tick / threads,
        s.elements / max(1, s.inner) * (-(-s.inner // LANES)) * tick / threads,
        *(nbytes / bandwidth for nbytes in s.read),
        s.written / bandwidth,
        s.strided / bandwidth,
        s.halves * step,
        s.doubles * step,
    )


def sketch_numbers(s: Sketch, target: Target) -> tuple[float, ...]:
    """What `SKETCH` names; the first is filled in later, as for calls."""
    elements, moved, total = max(s.elements, 1), s.moved, weighed(*s.work)
    threads = _threads(s, target)
    compute = total * vector_seconds(target) / LANES / threads + 1e-9
    memory = moved / target.memory(moved)[1] * target.cores / threads + 1e-9
    return (
        0.0,
        *map(log_size, (elements, s.rows, elements // s.rows if s.rows else 0, s.inner)),
        float(s.inner % LANES),
        float(s.rows > 0 and not s.columns),
        *map(float, (s.columns, s.nodes, s.reductions, s.sweeps)),
        *(count / elements for count in s.work),
        log_size(s.again),
        total / elements,
        moved / elements,
        *map(float, (s.reads, s.writes)),
        *map(log_size, (*s.read, s.written, s.strided, s.kept)),
        *(nbytes / (moved or 1) for nbytes in (s.halves, s.doubles, s.integers)),
        float(s.guarded),
        log_size(moved),
        float(threads),
        *map(math.log2, (compute, memory, vector_seconds(target))),
        *cache_fills(target, moved),
    )


def _threads(s: Sketch, target: Target) -> int:
    """How many threads share a kernel, if it is worth sharing (see `ir.loops.schedule`)."""
    simple, *costly = s.work
    accesses = s.elements * (s.reads + s.writes)
    nanoseconds = ACCESS * accesses + SIMPLE * simple + COSTLY * sum(costly)
    return target.cores if nanoseconds >= 2 * SHARE else 1


# --- pairs --------------------------------------------------------------------------------------

PAIR: Final = (
    *("expected", "screened", "count", "launches", "largest_part", "smallest_part"),
    *("moved_ratio", "work_ratio", "again", "together", "apart", "elements", "inner", "rows"),
    *("columns", "nodes", "reductions", "sweeps", "reads", "writes", "kept", "strided", "gathered"),
    *("halves", "doubles", "guarded", "threads", "per_first_cache", "per_last_cache"),
    *("largest_sweeps", "largest_columns", "largest_inner", "largest_nodes", "vector"),
)


def pair_features(
    apart: Sequence[Sketch],
    together: Sketch,
    screened: Sequence[float],
    expected: Sequence[float],
    target: Target,
) -> tuple[float, ...]:
    """Of kernels `apart` and the one that does the work of all. `screened` and `expected` are
    seconds of each, the one last."""
    *parts, whole = screened
    moved = sum(s.moved for s in apart)
    work = sum(weighed(*s.work) for s in apart)
    largest = apart[max(range(len(parts)), key=parts.__getitem__)]
    elements = max(together.elements, 1)
    return (
        math.log2(expected[-1] / sum(expected[:-1])),
        math.log2(whole / sum(parts)),
        float(len(apart)),
        len(apart) * target.launch_seconds / sum(parts),
        max(parts) / sum(parts),
        min(parts) / sum(parts),
        (together.moved + 1) / (moved + 1),
        (weighed(*together.work) + 1) / (work + 1),
        together.again / elements,
        math.log2(whole),
        math.log2(sum(parts)),
        *map(log_size, (elements, together.inner, together.rows)),
        *map(float, (together.columns, together.nodes, together.reductions, together.sweeps)),
        *map(float, (together.reads, together.writes)),
        *map(log_size, (together.kept, together.strided, together.read[3])),
        *(nbytes / (together.moved or 1) for nbytes in (together.halves, together.doubles)),
        float(together.guarded),
        float(_threads(together, target)),
        *cache_fills(target, together.moved),
        *map(float, (largest.sweeps, largest.columns)),
        log_size(largest.inner),
        float(largest.nodes),
        math.log2(vector_seconds(target)),
    )
