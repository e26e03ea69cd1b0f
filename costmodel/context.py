"""Calls in a program: what becomes of their time among others.

A call that is timed alone, over and over, finds its operands where it left them; in a program the
other calls have pushed them out by then (see `costmodel.reuse`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rewright.costmodel.features import FAMILIES, cache_fills, family_of
from rewright.costmodel.forest import Floats, Forest
from rewright.costmodel.library_features import main_type
from rewright.costmodel.reuse import Reuse, Walk, farther
from rewright.ir import hint
from rewright.ir.target import Target
from rewright.ir.work import flops

CONTEXT: Final = (
    "alone",
    *FAMILIES,
    *("far_read", "far_written", "returned", "dispatch", "compute"),
    *("per_first_cache", "per_last_cache"),
    *("distance_per_first_cache", "distance_per_last_cache"),
    *("after_kernel", "again", "run_per_last_cache"),
)


@dataclass(frozen=True)
class Surroundings:
    """What was learned of calls in programs: how much longer they take than alone, in log time, and
    what a run and a view of an input cost besides, in dispatches of the target."""

    forest: Forest
    start: float
    view: float

    def seconds(self, found: Walk, alone: Sequence[float], target: Target) -> Floats:
        """[calls]: seconds of each in the program."""
        if not alone:
            return np.zeros(0)
        return np.array(alone) * np.exp(self.forest.predict(context_rows(found, alone, target)))

    def besides(self, found: Walk, target: Target) -> float:
        """Seconds of a run that no call takes."""
        return (self.start + self.view * found.views) * target.dispatch_seconds


def context_rows(found: Walk, alone: Sequence[float], target: Target) -> Floats:
    """[calls, features]; `alone` are their seconds by themselves."""
    rows, after = [], 0.0
    for call, seconds in zip(found.calls, alone, strict=True):
        family = family_of(call.node)
        rows.append(_row(call, seconds, family, after, found.moved, target))
        after = float(family == "kernel")
    return np.array(rows)


def _row(
    call: Reuse, seconds: float, family: str, after: float, run: int, target: Target
) -> tuple[float, ...]:
    _, near = target.memory(call.moved)

    def far(moved: Sequence[tuple[int, int]]) -> float:
        """Seconds that memory takes longer, of those alone."""
        return farther(moved, near, target) / seconds

    read = [(n, d) for _, n, d in call.read]
    weight = sum(n for n, _ in read)
    distance = sum(n * d for n, d in read) // weight if weight else 0
    compute = hint(flops(call.node)) / target.peak(main_type(call.node))
    return (
        math.log2(seconds),
        *(float(family == name) for name in FAMILIES),
        far(read),
        far(call.written),
        call.returned / target.bandwidth / seconds,
        target.dispatch_seconds / seconds,
        compute / seconds,
        *cache_fills(target, call.moved),
        *cache_fills(target, distance),
        after,
        math.log2(call.since),
        cache_fills(target, run)[1],
    )
