"""Whether blocks fit a capacity: the door to the exact search of `ir/native/pack.c`.

One run of the search takes its decisions in one order of the blocks, and an unlucky first decision
may cost it more than all others together. So there are many runs, in several orders, most of them
short, and some longer and longer (Luby, Sinclair and Zuckerman, 1993): at last one is long enough
to find offsets, or to prove that there are none.
"""

from __future__ import annotations

import ctypes
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Final, NamedTuple

import numpy as np

from rewright.ir.native import native

from .problem import Blocks, Found
from .twin import Slab, pack_slowly

MOST_BLOCKS: Final = 2_000  # above it the search would recurse too deep
SHORTEST: Final = 2  # nodes of a run for each block

Clock = Callable[[], float]  # the seconds that are left


@dataclass(frozen=True)
class Outcome:
    """How a search ended, the offsets if it found some, and the nodes that it took."""

    found: Found
    offsets: list[int]
    nodes: int


def forever() -> float:
    return math.inf


class Fitter:
    """Blocks, and what searches with several capacities share. Not for more than MOST_BLOCKS."""

    def __init__(self, blocks: Blocks) -> None:
        if len(blocks) > MOST_BLOCKS:
            raise ValueError(f"{len(blocks)} blocks are too many to search")
        times = _section_times(blocks)
        self.sections = len(times)
        self.slabs = [
            Slab(b.size, bisect_left(times, b.start), bisect_left(times, b.stop)) for b in blocks
        ]
        self.steps = sum(len(slab.sections) for slab in self.slabs)  # of one node
        self._orders = _orders_of(blocks, self.slabs, self.sections)

    def fit(self, capacity: int, nodes: int, seconds_left: Clock = forever) -> Outcome:
        """Search with so many nodes, and while there are seconds left, which decide nothing else
        than when to stop."""
        chance, used, at_first = Random(0), 0, seconds_left()
        for run in count():
            turn, which = divmod(run, len(self._orders))
            allowed = min(SHORTEST * len(self.slabs) * _luby(turn + 1), nodes - used)
            left = seconds_left()
            if used and 0 < left < at_first:
                allowed = min(allowed, math.ceil(used * left / (at_first - left)))
            if allowed <= 0 or left <= 0:
                break
            ranks = self._orders[which].shuffled(chance)
            slabs = [self.slabs[i] for i in ranks]
            found, offsets, taken = pack(slabs, self.sections, capacity, allowed)
            used += taken
            if found is Found.FITS:
                placed = dict(zip(ranks, offsets, strict=True))
                return Outcome(found, [placed[i] for i in range(len(ranks))], used)
            if found is Found.FAILS:
                return Outcome(found, [], used)
        return Outcome(Found.ENDED, [], used)


def _section_times(blocks: Blocks) -> list[int]:
    """The steps at which the live blocks are no subset of those at another: the last starts before
    a stop."""
    starts = sorted({block.start for block in blocks})
    stops = sorted({block.stop for block in blocks})
    afters = [*starts[1:], *stops[-1:]]
    return [
        start
        for start, after in zip(starts, afters, strict=True)
        if stops[bisect_right(stops, start)] <= after
    ]


# ---- orders ----


class _Order(NamedTuple):
    """Blocks of more weight come first, where chance does not change that by `noise`."""

    weights: Sequence[float]
    noise: float

    def shuffled(self, chance: Random) -> list[int]:
        drawn = [w * (1 + self.noise * (chance.random() - 0.5)) for w in self.weights]
        return sorted(range(len(drawn)), key=lambda i: -drawn[i])


def _orders_of(blocks: Blocks, slabs: Sequence[Slab], sections: int) -> tuple[_Order, ...]:
    """The longest first, those that live among the most bytes first, and roughly the longest."""
    live = [0] * sections
    for slab in slabs:
        for t in slab.sections:
            live[t] += slab.size
    lengths = [float(block.stop - block.start) for block in blocks]
    crowds = [float(max(live[slab.first : slab.last])) for slab in slabs]
    return _Order(lengths, 0.3), _Order(crowds, 0.1), _Order(lengths, 0.8)


def _luby(turn: int) -> int:
    """1, 1, 2, 1, 1, 2, 4, 1, 1, 2, ..."""
    while turn & (turn + 1):
        turn -= (1 << (turn.bit_length() - 1)) - 1
    return (turn + 1) >> 1


# ---- one run ----


class _Problem(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int32),
        ("sections", ctypes.c_int32),
        ("capacity", ctypes.c_int64),
        ("nodes", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("size", "from_", "to")),
    ]


def pack(
    slabs: Sequence[Slab], sections: int, capacity: int, nodes: int
) -> tuple[Found, list[int], int]:
    """How a search that prefers the first slabs ended, their offsets, and the nodes it took."""
    library = native("pack")
    if library is None:
        return pack_slowly(slabs, sections, capacity, nodes)
    columns = zip(*slabs, strict=True) if slabs else ((), (), ())
    types = (np.int64, np.int32, np.int32)
    arrays = [np.array(column, type) for column, type in zip(columns, types, strict=True)]
    offsets, taken = np.zeros(len(slabs), np.int64), ctypes.c_int64()
    problem = _Problem(
        len(slabs), sections, capacity, nodes, *(array.ctypes.data for array in arrays)
    )
    found = library.rw_pack(
        ctypes.byref(problem), ctypes.c_void_p(offsets.ctypes.data), ctypes.byref(taken)
    )
    return Found(found), offsets.tolist(), taken.value
